//! A whole front-end from a few settings: connect, negotiate, share memory, start rings; leave and
//! come back. The order of the messages is a script that a test may write itself.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    Connection, Error, GuestMemory, Ring,
    message::{feature, protocol},
};

/// Descriptors in a ring, where the caller says nothing else: what QEMU takes.
const QUEUE_SIZE: u16 = 128;

/// One step of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `GET_FEATURES` (and the choice of features, which is sent later).
    Features,
    /// `SET_FEATURES`.
    SetFeatures,
    /// `GET_PROTOCOL_FEATURES` and `SET_PROTOCOL_FEATURES`, if the back-end has any.
    Protocol,
    /// `SET_OWNER`.
    Owner,
    /// `SET_MEM_TABLE` with all regions.
    MemoryTable,
    /// `ADD_MEM_REG` for each region.
    MemoryRegions,
    /// One step for each ring.
    Rings(RingStep),
    /// All steps in the default order for one ring.
    WholeRing(u16),
    /// One step for one ring.
    Ring(u16, RingStep),
}

/// One step of a ring's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingStep {
    /// `SET_VRING_NUM`.
    Size,
    /// `SET_VRING_BASE`.
    Base,
    /// `SET_VRING_ADDR`.
    Addresses,
    /// `SET_VRING_CALL`.
    Call,
    /// `SET_VRING_ERR`.
    Error,
    /// `SET_VRING_KICK`.
    Kick,
    /// `SET_VRING_ENABLE` with 1.
    Enable,
}

impl RingStep {
    /// The usual order.
    pub const ALL: [Self; 7] = [
        Self::Size,
        Self::Base,
        Self::Addresses,
        Self::Call,
        Self::Error,
        Self::Kick,
        Self::Enable,
    ];
}

/// How a front-end starts.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    path: PathBuf,
    regions: Vec<(Option<u64>, u64)>,
    queues: u16,
    queue_size: u16,
    required: u64,
    refused: u64,
    required_protocol: u64,
    refused_protocol: u64,
    polled: bool,
    script: Option<Vec<Step>>,
}

impl Builder {
    /// Adds a region of so many bytes. Without any there is one of 1 MiB.
    pub fn memory(mut self, size: u64) -> Self {
        self.regions.push((None, size));
        self
    }

    /// Adds a region of so many bytes at this guest address.
    pub fn memory_at(mut self, guest_address: u64, size: u64) -> Self {
        self.regions.push((Some(guest_address), size));
        self
    }

    /// Number of rings; 1 without this.
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Descriptors in each ring; 128 without this.
    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Features without which the start fails. `VERSION_1`, `EVENT_IDX` and `INDIRECT_DESC` are
    /// taken anyway where offered.
    pub fn features(mut self, features: u64) -> Self {
        self.required |= features;
        self
    }

    /// Features that are not taken even if offered.
    pub fn without_features(mut self, features: u64) -> Self {
        self.refused |= features;
        self
    }

    /// Protocol features without which the start fails. Those of [`protocol`] are taken anyway.
    pub fn protocol_features(mut self, features: u64) -> Self {
        self.required_protocol |= features;
        self
    }

    /// Protocol features that are not taken even if offered.
    pub fn without_protocol_features(mut self, features: u64) -> Self {
        self.refused_protocol |= features;
        self
    }

    /// Neither kicks nor calls: both sides poll (`SET_VRING_KICK` and `CALL` without descriptor).
    pub fn polled(mut self) -> Self {
        self.polled = true;
        self
    }

    /// The messages of the start, in this order, instead of the usual ones.
    pub fn script(mut self, steps: &[Step]) -> Self {
        self.script = Some(steps.to_vec());
        self
    }

    /// Connects and starts.
    pub fn start(self) -> Result<FrontEnd, Error> {
        self.prepare()?.resume()
    }

    /// Lays out memory and rings, without a connection.
    pub fn prepare(self) -> Result<Parked, Error> {
        let memory = Rc::new(GuestMemory::new());
        let regions = if self.regions.is_empty() {
            &[(None, 1 << 20)]
        } else {
            &self.regions[..]
        };
        for (address, size) in regions {
            match address {
                Some(address) => memory.add_region_at(*address, *size)?,
                None => memory.add_region(*size)?,
            };
        }
        let new = |index| Ring::new(&memory, index, self.queue_size);
        let mut rings = (0..self.queues).map(new).collect::<Result<Vec<_>, _>>()?;
        if self.polled {
            for ring in &mut rings {
                ring.set_kick_event(None);
                ring.set_call_event(None);
            }
        }
        let bases = vec![0; rings.len()];
        Ok(Parked {
            settings: self,
            memory,
            rings,
            bases,
        })
    }

    fn steps(&self) -> Vec<Step> {
        self.script.clone().unwrap_or_else(|| {
            let mut steps = vec![
                Step::Features,
                Step::Protocol,
                Step::Owner,
                Step::SetFeatures,
                Step::MemoryTable,
            ];
            steps.extend((0..self.queues).map(Step::WholeRing));
            steps
        })
    }
}

/// A front-end between two connections: memory and rings are there, the back-end is not.
#[derive(Debug)]
#[must_use]
pub struct Parked {
    settings: Builder,
    memory: Rc<GuestMemory>,
    rings: Vec<Ring>,
    bases: Vec<u16>,
}

impl Parked {
    /// Connects (again) and starts the rings where they stopped.
    pub fn resume(self) -> Result<FrontEnd, Error> {
        let connection = Connection::open(&self.settings.path)?;
        self.resume_on(connection)
    }

    /// Starts the rings where they stopped, on a connection that is there already.
    pub fn resume_on(self, connection: Connection) -> Result<FrontEnd, Error> {
        let Self {
            settings,
            memory,
            rings,
            bases,
        } = self;
        let steps = settings.steps();
        let mut front = FrontEnd {
            connection,
            memory,
            rings,
            bases,
            settings,
            offered: 0,
            features: 0,
            protocol: 0,
        };
        for step in steps {
            front.take(step)?;
        }
        Ok(front)
    }

    /// Lets a ring that was not used yet begin at an index other than 0.
    pub fn start_at(&mut self, ring: u16, index: u16) -> Result<(), Error> {
        let number = usize::from(ring);
        let (Some(ring), Some(base)) = (self.rings.get_mut(number), self.bases.get_mut(number))
        else {
            return Err(Error::Misuse("there is no such ring"));
        };
        *base = index;
        ring.start_at(index)
    }

    /// Where each ring starts: the answers of `GET_VRING_BASE`, or 0.
    pub fn bases(&self) -> &[u16] {
        &self.bases
    }

    /// The shared memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// A ring.
    ///
    /// # Panics
    /// If there is no such ring.
    pub fn ring(&mut self, index: u16) -> &mut Ring {
        &mut self.rings[usize::from(index)]
    }
}

/// A front-end with a running connection.
#[derive(Debug)]
pub struct FrontEnd {
    connection: Connection,
    memory: Rc<GuestMemory>,
    rings: Vec<Ring>,
    bases: Vec<u16>,
    settings: Builder,
    offered: u64,
    features: u64,
    protocol: u64,
}

impl FrontEnd {
    /// Begins the description of a front-end for the back-end at this socket.
    pub fn connect(path: impl AsRef<Path>) -> Builder {
        Builder {
            path: path.as_ref().to_owned(),
            regions: Vec::new(),
            queues: 1,
            queue_size: QUEUE_SIZE,
            required: 0,
            refused: 0,
            required_protocol: 0,
            refused_protocol: 0,
            polled: false,
            script: None,
        }
    }

    /// The connection, for single messages.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The shared memory.
    pub fn memory(&self) -> &Rc<GuestMemory> {
        &self.memory
    }

    /// A ring.
    ///
    /// # Panics
    /// If there is no such ring.
    pub fn ring(&mut self, index: u16) -> &mut Ring {
        &mut self.rings[usize::from(index)]
    }

    /// Number of rings.
    pub fn ring_count(&self) -> u16 {
        self.settings.queues
    }

    /// Features that the back-end offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Features that were negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features that were negotiated.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Takes one step of a start, now.
    pub fn take(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Features => self.choose_features(),
            Step::SetFeatures => self.connection.set_features(self.features),
            Step::Protocol => self.negotiate_protocol(),
            Step::Owner => self.connection.set_owner(),
            Step::MemoryTable => self
                .memory
                .with_regions(|regions| self.connection.set_memory_table(regions)),
            Step::MemoryRegions => (0..self.memory.region_count()).try_for_each(|number| {
                self.memory.with_region(number, |layout, file| {
                    self.connection.add_memory_region(layout, file)
                })
            }),
            Step::Rings(step) => {
                (0..self.settings.queues).try_for_each(|ring| self.take_ring(ring, step))
            }
            Step::WholeRing(ring) => RingStep::ALL
                .into_iter()
                .try_for_each(|step| self.take_ring(ring, step)),
            Step::Ring(ring, step) => self.take_ring(ring, step),
        }
    }

    /// Stops all rings; where each stopped.
    pub fn stop(&mut self) -> Result<Vec<u16>, Error> {
        let stop = |ring: u16| self.connection.ring_base(ring.into());
        self.bases = (0..self.settings.queues)
            .map(stop)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.bases.clone())
    }

    /// Stops all rings, closes the connection and keeps everything for the next.
    pub fn leave(mut self) -> Result<Parked, Error> {
        self.stop()?;
        let Self {
            memory,
            rings,
            bases,
            settings,
            ..
        } = self;
        Ok(Parked {
            settings,
            memory,
            rings,
            bases,
        })
    }

    /// Closes the connection without a word, as a VMM that is killed, and starts over with rings
    /// that are empty.
    pub fn vanish(self) -> Result<Parked, Error> {
        let Self {
            memory,
            mut rings,
            settings,
            connection,
            ..
        } = self;
        drop(connection);
        rings.iter_mut().try_for_each(Ring::reset)?;
        let bases = vec![0; rings.len()];
        Ok(Parked {
            settings,
            memory,
            rings,
            bases,
        })
    }

    fn choose_features(&mut self) -> Result<(), Error> {
        let offered = self.connection.features()?;
        let Builder {
            required, refused, ..
        } = self.settings;
        if required & !offered != 0 {
            return Err(Error::NotOffered {
                what: "features",
                wanted: required,
                offered,
            });
        }
        let usual = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        let wanted = (usual | feature::PROTOCOL_FEATURES | required) & !refused;
        self.offered = offered;
        self.features = offered & wanted;
        for ring in &mut self.rings {
            ring.set_features(self.features);
        }
        Ok(())
    }

    fn negotiate_protocol(&mut self) -> Result<(), Error> {
        if self.features & feature::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let offered = self.connection.protocol_features()?;
        let Builder {
            required_protocol: required,
            refused_protocol: refused,
            ..
        } = self.settings;
        if required & !offered != 0 {
            return Err(Error::NotOffered {
                what: "protocol features",
                wanted: required,
                offered,
            });
        }
        let usual = protocol::MQ
            | protocol::REPLY_ACK
            | protocol::BACKEND_REQ
            | protocol::CONFIG
            | protocol::RESET_DEVICE
            | protocol::CONFIGURE_MEM_SLOTS;
        self.protocol = offered & (usual | required) & !refused;
        self.connection.set_protocol_features(self.protocol)?;
        self.connection
            .set_acknowledge(self.protocol & protocol::REPLY_ACK != 0);
        Ok(())
    }

    fn take_ring(&mut self, index: u16, step: RingStep) -> Result<(), Error> {
        let number = usize::from(index);
        let (ring, base) = (&self.rings[number], self.bases[number]);
        let (wide, narrow) = (u32::from(index), small(index)?);
        let connection = &self.connection;
        match step {
            RingStep::Size => connection.set_ring_size(wide, ring.size().into()),
            RingStep::Base => connection.set_ring_base(wide, base),
            RingStep::Addresses => connection.set_ring_addresses(wide, &ring.addresses()?),
            RingStep::Call => connection.set_ring_call(narrow, ring.call_event().map(AsFd::as_fd)),
            RingStep::Error => connection.set_ring_error(narrow, Some(ring.error_event().as_fd())),
            RingStep::Kick => connection.set_ring_kick(narrow, ring.kick_event().map(AsFd::as_fd)),
            RingStep::Enable => match self.features & feature::PROTOCOL_FEATURES {
                0 => Ok(()),
                _ => {
                    connection.set_ring_enable(wide, true)?;
                    connection.settle()
                }
            },
        }
    }
}

/// A ring's index as `SET_VRING_KICK` and its kin have it: one byte.
fn small(index: u16) -> Result<u8, Error> {
    u8::try_from(index).map_err(|_| Error::Misuse("vhost-user names at most 256 rings"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::message::{
        HEADER_SIZE, Header, NEED_REPLY, REPLY, VERSION, frame, long_words, request,
    };

    /// Plays a back-end with these protocol features until the front-end leaves; what it was asked.
    fn serve(mut socket: UnixStream, protocol: u64) -> Vec<u32> {
        let mut asked = Vec::new();
        let mut header = [0; HEADER_SIZE];
        while socket.read_exact(&mut header).is_ok() {
            let Header {
                request,
                flags,
                size,
            } = Header::parse(header);
            socket.read_exact(&mut vec![0; size as usize]).unwrap();
            asked.push(request);
            let answer = match request {
                request::GET_FEATURES => feature::VERSION_1 | feature::PROTOCOL_FEATURES,
                request::GET_PROTOCOL_FEATURES => protocol,
                _ if flags & NEED_REPLY != 0 => 0,
                _ => continue,
            };
            let answer = frame(request, VERSION | REPLY, &long_words(&[answer]));
            socket.write_all(&answer).unwrap();
        }
        asked
    }

    /// What a back-end with these protocol features is asked in a start.
    fn start(protocol: u64) -> Vec<u32> {
        let (connection, socket) = Connection::pair().unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| serve(socket, protocol));
            let parked = FrontEnd::connect("").prepare().unwrap();
            drop(parked.resume_on(connection).unwrap());
            served.join().unwrap()
        })
    }

    #[test]
    fn a_ring_is_enabled_before_its_first_kick_whether_that_is_acknowledged_or_not() {
        let acknowledged = start(protocol::REPLY_ACK);
        assert_eq!(acknowledged.last(), Some(&request::SET_VRING_ENABLE));
        let silent = start(0);
        let last = [request::SET_VRING_ENABLE, request::GET_FEATURES];
        assert!(silent.ends_with(&last), "{silent:?}");
    }
}
