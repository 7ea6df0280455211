//! A connection's state under packets of a guest that keeps no rule, against a model that counts
//! in 64 bits. A failure names its seed.

use super::super::credit::{BUFFER_MIN as BUFFER, CreditError};
use super::super::packet::HOST_CID;
use super::*;

const GUEST: u64 = 3;
const PORTS: Ports = Ports {
    host: 80,
    guest: 1000,
};

/// Numbers that come again with the same seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit.max(1))).unwrap()
    }

    /// Small numbers, great ones, and those at the edges.
    fn word(&mut self) -> u32 {
        match self.below(5) {
            0 => self.below(4),
            1 => u32::MAX - self.below(4),
            2 => BUFFER - 2 + self.below(4),
            3 => self.below(BUFFER),
            _ => u32::try_from(self.next() & u64::from(u32::MAX)).unwrap(),
        }
    }
}

fn packet(op: Op) -> Header {
    Header {
        from: GUEST,
        to: HOST_CID,
        from_port: PORTS.guest,
        to_port: PORTS.host,
        ..Header::to_guest(GUEST, PORTS, op)
    }
}

fn open(buffer: u32) -> State {
    let request = Header {
        buffer,
        ..packet(Op::Request)
    };
    let mut state = State::asked(GUEST, &request, BUFFER);
    state.granted();
    assert_eq!(state.next_owed().unwrap().op, Op::Response);
    state
}

#[test]
fn credit_goes_both_ways_and_is_told_when_half_of_the_buffer_is_free_again() {
    let mut state = open(100);
    assert_eq!(state.room(), 100);
    assert_eq!(state.data(60).length, 60);
    assert_eq!(state.room(), 40);
    let update = Header {
        buffer: 100,
        forwarded: 60,
        ..packet(Op::CreditUpdate)
    };
    assert_eq!(state.hear(&update), Ok(Heard::Nothing));
    assert_eq!(state.room(), 100);

    let data = |length| Header {
        length,
        ..packet(Op::Data)
    };
    assert_eq!(state.hear(&data(BUFFER)), Ok(Heard::Data));
    assert!(!state.owes());
    state.forwarded(BUFFER / 4);
    let told = state.next_owed().unwrap();
    assert_eq!((told.op, told.buffer), (Op::CreditUpdate, BUFFER));
    assert_eq!(told.forwarded, BUFFER / 4);
    assert_eq!(state.hear(&data(BUFFER / 4)), Ok(Heard::Data));
    let room = 0;
    let overrun = CreditError::Overrun { length: 1, room };
    assert_eq!(state.hear(&data(1)), Err(Refused::Credit(overrun)));
}

#[test]
fn a_guest_that_has_forwarded_what_it_was_not_sent_lies_and_one_that_is_late_does_not() {
    let mut state = open(100);
    state.data(50);
    let update = |forwarded| Header {
        buffer: 100,
        forwarded,
        ..packet(Op::CreditUpdate)
    };
    assert_eq!(state.hear(&update(40)), Ok(Heard::Nothing));
    assert_eq!(state.hear(&update(30)), Ok(Heard::Nothing));
    assert_eq!(state.room(), 90);
    let lie = CreditError::Ahead { ahead: 1 };
    assert_eq!(state.hear(&update(51)), Err(Refused::Credit(lie)));
}

#[test]
fn a_buffer_that_shrinks_leaves_no_room() {
    let mut state = open(100);
    state.data(50);
    let shrunk = Header {
        buffer: 20,
        ..packet(Op::CreditUpdate)
    };
    assert_eq!(state.hear(&shrunk), Ok(Heard::Nothing));
    assert_eq!(state.room(), 0);
    state.lacks_credit();
    state.lacks_credit();
    assert_eq!(state.next_owed().unwrap().op, Op::CreditRequest);
    assert!(!state.owes());
}

#[test]
fn halves_end_one_after_the_other_and_data_after_the_end_is_refused() {
    let mut state = open(100);
    let end = |flags| Header {
        flags,
        buffer: 100,
        ..packet(Op::Shutdown)
    };
    assert_eq!(state.hear(&end(shutdown::SEND)), Ok(Heard::Ended));
    assert_eq!(state.room(), 100);
    assert_eq!(state.hear(&packet(Op::Data)), Err(Refused::AfterEnd));
    state.host_sends_no_more();
    let told = state.next_owed().unwrap();
    assert_eq!((told.op, told.flags), (Op::Shutdown, shutdown::SEND));
    assert_eq!(state.room(), 0);
    assert_eq!(state.hear(&end(shutdown::RECEIVE)), Ok(Heard::Finished));
}

/// What a connection has been through, in numbers that do not wrap.
#[derive(Default)]
struct Model {
    received: u64,
    forwarded: u64,
    sent: u64,
    peer_forwarded: u64,
    peer_buffer: u64,
}

/// Plays one seed until the connection ends.
fn play(seed: u64) {
    let mut random = Random(seed);
    let mut state = match random.below(2) {
        0 => open(random.word()),
        _ => State::offered(GUEST, PORTS, BUFFER),
    };
    // So that counters wrap: as after a long life of the connection.
    let start = random.word();
    state.outgoing = Outgoing::at(start);
    let mut model = Model::default();
    for _ in 0..2000 {
        if random.below(2) == 0 {
            let heard = packet_of_a_guest(&mut random, &model, start, &mut state);
            match heard {
                Some((header, Ok(Heard::Gone | Heard::Finished))) => {
                    return assert!(header.op == Op::Reset || header.op == Op::Shutdown);
                }
                Some((_, Err(_))) => return,
                Some((header, Ok(heard))) => model.hear(&header, heard, start),
                None => {}
            }
        } else {
            something_of_the_host(&mut random, &mut model, &mut state);
        }
        model.check(&state);
    }
}

fn packet_of_a_guest(
    random: &mut Random,
    model: &Model,
    start: u32,
    state: &mut State,
) -> Option<(Header, Result<Heard, Refused>)> {
    let op = match random.below(16) {
        0..=7 => Op::Data,
        8 | 9 => Op::CreditUpdate,
        10 => Op::CreditRequest,
        11 => Op::Response,
        12 => Op::Shutdown,
        13 => Op::Other(u16::try_from(random.below(u32::from(u16::MAX))).unwrap()),
        14 if random.below(50) == 0 => Op::Reset,
        _ => return None,
    };
    // Mostly true, and now and then anything.
    let flying = u32::try_from(model.sent - model.peer_forwarded).unwrap();
    let forwarded = match random.below(20) {
        0 => random.word(),
        _ => start
            .wrapping_add(u32::try_from(model.peer_forwarded & u64::from(u32::MAX)).unwrap())
            .wrapping_add(random.below(flying + 1)),
    };
    let header = Header {
        length: random.word().min(BUFFER / 2),
        flags: random.below(3),
        buffer: random.word(),
        forwarded,
        ..packet(op)
    };
    let heard = state.hear(&header);
    Some((header, heard))
}

fn something_of_the_host(random: &mut Random, model: &mut Model, state: &mut State) {
    match random.below(8) {
        0..=2 => {
            let count = random.below(state.held() + 1);
            if state.held() > 0 {
                state.forwarded(count);
                model.forwarded += u64::from(count);
            }
        }
        3..=5 => {
            let room = state.room();
            if room > 0 {
                let count = 1 + random.below(room.min(1 << 16));
                assert_eq!(state.data(count).length, count);
                model.sent += u64::from(count);
            }
        }
        6 => {
            if let Some(header) = state.next_owed() {
                assert_eq!(header.buffer, BUFFER);
                assert_eq!(u64::from(header.forwarded), model.forwarded & 0xffff_ffff);
            }
        }
        _ if random.below(100) == 0 => state.host_sends_no_more(),
        _ => state.lacks_credit(),
    }
}

impl Model {
    fn hear(&mut self, header: &Header, heard: Heard, start: u32) {
        if heard == Heard::Data {
            self.received += u64::from(header.length);
        }
        let count = start.wrapping_add(u32::try_from(self.peer_forwarded & 0xffff_ffff).unwrap());
        let advance = u64::from(header.forwarded.wrapping_sub(count));
        // What is behind is late, and what is ahead was refused.
        if self.peer_forwarded + advance <= self.sent {
            self.peer_forwarded += advance;
        }
        self.peer_buffer = header.buffer.into();
    }

    fn check(&self, state: &State) {
        let held = self.received - self.forwarded;
        assert!(held <= u64::from(BUFFER));
        assert_eq!(u64::from(state.held()), held);
        let flying = self.sent - self.peer_forwarded;
        let room = self.peer_buffer.saturating_sub(flying);
        assert!(u64::from(state.room()) <= room);
    }
}

#[test]
fn no_guest_gets_a_connection_beyond_its_credit_or_its_buffer() {
    let only = std::env::var("VUDEV_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = only.map_or_else(|| (1..=400).collect(), |seed| vec![seed]);
    for seed in seeds {
        let played =
            std::panic::catch_unwind(|| play(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        assert!(played.is_ok(), "VUDEV_SEED={seed} plays it again");
    }
}
