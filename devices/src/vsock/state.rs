//! What one connection has been through, and what its guest is owed to hear (virtio 1.3, 5.10.6).
//! Pure: packets and events go in, packets come out, and sockets are `connection`'s.

use super::credit::{CreditError, Incoming, Outgoing};
use super::packet::{Header, Op, Ports, shutdown};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has asked, and the host has not answered.
    Asked,
    /// The host has asked, and the guest has not answered.
    Offered,
    /// Data may flow.
    Open,
    /// We have ended both halves; the guest's reset is awaited.
    Closing,
}

/// A connection without its sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    ports: Ports,
    guest_cid: u64,
    phase: Phase,
    incoming: Incoming,
    outgoing: Outgoing,
    /// What the guest has ended, as bits of [`shutdown`].
    guest_ended: u32,
    /// What the host has ended.
    host_ended: u32,
    owed: Owed,
    /// The guest was asked for credit, and has given none since.
    asked_credit: bool,
}

/// Packets that the guest is to get.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    /// REQUEST or RESPONSE, before all else.
    opening: Option<Op>,
    shutdown: bool,
    update: bool,
    credit_request: bool,
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing more.
    Nothing,
    /// The host's wish has been granted.
    Opened,
    /// Its data is the host's.
    Data,
    /// The guest has ended a half.
    Ended,
    /// It has ended both: a reset is its answer, once the host has the data.
    Finished,
    /// It has reset the connection.
    Gone,
}

/// The guest broke the rules; the connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// Of credit.
    #[error(transparent)]
    Credit(#[from] CreditError),
    /// An operation that has no place here.
    #[error("{op:?} while {phase:?}")]
    Misplaced { op: Op, phase: Phase },
    /// Data after it said that there would be none.
    #[error("data after the end")]
    AfterEnd,
}

impl State {
    /// The guest asks for a connection, which keeps at most `buffer` bytes of its.
    pub(super) fn asked(guest_cid: u64, request: &Header, buffer: u32) -> Self {
        let mut state = Self::new(guest_cid, request.ports(), Phase::Asked, buffer);
        // Of a connection without history no count is ahead but one that is not zero; such a guest
        // is told so by its next packet.
        let _ = state.outgoing.hear(request.buffer, request.forwarded);
        state
    }

    /// The host asks for one.
    pub(super) fn offered(guest_cid: u64, ports: Ports, buffer: u32) -> Self {
        let mut state = Self::new(guest_cid, ports, Phase::Offered, buffer);
        state.owed.opening = Some(Op::Request);
        state
    }

    fn new(guest_cid: u64, ports: Ports, phase: Phase, buffer: u32) -> Self {
        Self {
            ports,
            guest_cid,
            phase,
            incoming: Incoming::new(buffer),
            outgoing: Outgoing::default(),
            guest_ended: 0,
            host_ended: 0,
            owed: Owed::default(),
            asked_credit: false,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// The most bytes of the guest's that are kept for the host.
    pub(super) fn buffer(&self) -> u32 {
        self.incoming.buffer()
    }

    /// Bytes for the host that it has not got yet.
    pub(super) fn held(&self) -> u32 {
        self.incoming.held()
    }

    /// Whether the guest will send no more.
    pub(super) fn guest_sends_no_more(&self) -> bool {
        self.guest_ended & shutdown::SEND != 0
    }

    /// Whether the guest will receive no more.
    pub(super) fn guest_receives_no_more(&self) -> bool {
        self.guest_ended & shutdown::RECEIVE != 0
    }

    /// How much data the guest may be sent now.
    pub(super) fn room(&self) -> u32 {
        let flows = self.phase == Phase::Open
            && !self.guest_receives_no_more()
            && self.host_ended & shutdown::SEND == 0;
        if flows { self.outgoing.room() } else { 0 }
    }

    /// Takes a packet of the guest's in.
    pub(super) fn hear(&mut self, packet: &Header) -> Result<Heard, Refused> {
        let Self { phase, .. } = *self;
        if packet.op == Op::Reset {
            return Ok(Heard::Gone);
        }
        self.outgoing.hear(packet.buffer, packet.forwarded)?;
        self.asked_credit &= self.outgoing.room() == 0;
        match (packet.op, phase) {
            (Op::Response, Phase::Offered) if self.owed.opening.is_none() => {
                self.phase = Phase::Open;
                Ok(Heard::Opened)
            }
            (Op::Data, Phase::Open) => self.hear_data(packet.length),
            // It was on its way when we ended the connection.
            (Op::Data, Phase::Closing) => Ok(Heard::Nothing),
            (Op::Shutdown, Phase::Open | Phase::Closing) => {
                self.guest_ended |= packet.flags & shutdown::BOTH;
                let both = self.guest_ended == shutdown::BOTH;
                Ok(if both { Heard::Finished } else { Heard::Ended })
            }
            (Op::CreditRequest, Phase::Open) => {
                self.owed.update = true;
                Ok(Heard::Nothing)
            }
            (Op::CreditUpdate | Op::CreditRequest, _) => Ok(Heard::Nothing),
            (op, phase) => Err(Refused::Misplaced { op, phase }),
        }
    }

    fn hear_data(&mut self, length: u32) -> Result<Heard, Refused> {
        if self.guest_sends_no_more() {
            return Err(Refused::AfterEnd);
        }
        self.incoming.accept(length)?;
        if self.host_ended & shutdown::RECEIVE != 0 {
            // It was on its way when the host stopped reading.
            self.incoming.forward(length);
            return Ok(Heard::Nothing);
        }
        Ok(Heard::Data)
    }

    /// The host has granted the guest's wish.
    pub(super) fn granted(&mut self) {
        self.phase = Phase::Open;
        self.owed.opening = Some(Op::Response);
    }

    /// So many bytes have gone on to the host.
    pub(super) fn forwarded(&mut self, length: u32) {
        // Else they have been counted when it stopped reading.
        if self.host_ended & shutdown::RECEIVE == 0 {
            self.incoming.forward(length);
        }
    }

    /// The host will send no more.
    pub(super) fn host_sends_no_more(&mut self) {
        self.end(shutdown::SEND);
    }

    /// The host will receive no more. What it has not got goes nowhere.
    pub(super) fn host_receives_no_more(&mut self) {
        self.incoming.forward(self.incoming.held());
        self.end(shutdown::RECEIVE);
    }

    fn end(&mut self, half: u32) {
        if self.host_ended | half != self.host_ended {
            self.host_ended |= half;
            self.owed.shutdown = true;
        }
        if self.host_ended == shutdown::BOTH {
            self.phase = Phase::Closing;
        }
    }

    /// There is data and no room for it: the guest is asked, once.
    pub(super) fn lacks_credit(&mut self) {
        self.owed.credit_request |= !self.asked_credit;
        self.asked_credit = true;
    }

    /// Whether the guest is owed a packet.
    pub(super) fn owes(&self) -> bool {
        let Owed {
            opening,
            shutdown,
            update,
            credit_request,
        } = self.owed;
        let speaks = matches!(self.phase, Phase::Open | Phase::Closing);
        let credit = update || credit_request || self.incoming.owes_update();
        opening.is_some() || speaks && (shutdown || credit)
    }

    /// The next packet that it is owed.
    pub(super) fn next_owed(&mut self) -> Option<Header> {
        if !self.owes() {
            return None;
        }
        if let Some(op) = self.owed.opening.take() {
            return Some(self.packet(op));
        }
        if std::mem::take(&mut self.owed.shutdown) {
            let flags = self.host_ended;
            return Some(Header {
                flags,
                ..self.packet(Op::Shutdown)
            });
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some(self.packet(Op::CreditRequest));
        }
        Some(self.update())
    }

    /// A packet that says nothing but how much room there is: lawful at any time.
    pub(super) fn update(&mut self) -> Header {
        self.packet(Op::CreditUpdate)
    }

    /// The header of so many bytes for the guest, at most [`State::room`].
    pub(super) fn data(&mut self, length: u32) -> Header {
        self.outgoing.send(length);
        Header {
            length,
            ..self.packet(Op::Data)
        }
    }

    /// The end of it all.
    pub(super) fn reset(&self) -> Header {
        Header::to_guest(self.guest_cid, self.ports, Op::Reset)
    }

    /// Every packet tells the guest how much room there is.
    fn packet(&mut self, op: Op) -> Header {
        self.owed.update = false;
        let (buffer, forwarded) = self.incoming.tell();
        Header {
            buffer,
            forwarded,
            ..Header::to_guest(self.guest_cid, self.ports, op)
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
