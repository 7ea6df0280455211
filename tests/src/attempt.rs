//! What the test device `vudev-escape` can be asked to do to its jail, as numbers in its
//! configuration space. How it does it is the device's.

/// The result while an attempt is under way.
pub const RESULT_PENDING: i32 = i32::MAX;

/// One thing that a jailed device must not be able to do, or that its host must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attempt {
    /// `openat`.
    Open = 1,
    /// `socket`.
    Socket,
    /// A ring operation outside the allow-list.
    RingOpcode,
    /// A panic.
    Panic,
    /// An endless loop.
    Hang,
    /// An exit with status 7.
    Exit,
    /// A hundred thousand log lines with terminal escapes.
    Flood,
    /// A descriptor sent to the supervisor, by the ring.
    Smuggle,
}

impl Attempt {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Socket,
        Self::RingOpcode,
        Self::Panic,
        Self::Hang,
        Self::Exit,
        Self::Flood,
        Self::Smuggle,
    ];

    /// The number in the configuration space.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The attempt of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|attempt| attempt.number() == number)
    }
}
