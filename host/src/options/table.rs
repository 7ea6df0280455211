//! The tables that say which keys a device takes: one table parses, checks and explains them.
//! Nothing here looks at an argument; see [`super::values`] and [`super::help`].

use super::address::{VHOST_MEANING, VVU_MEMORY_MEANING, VVU_MEMORY_WORDS};
use super::convert::default_of;
use super::poll::{POLL_MEANING, POLL_US_MAX};

/// The keys of one device flag, `--serial` say.
#[derive(Debug)]
pub struct Table {
    /// The flag without its dashes; device N of this kind is called `{device}-{N}`.
    pub device: &'static str,
    /// One sentence for the list of devices in `--help`.
    pub about: &'static str,
    /// The device's own keys, in the order that help shows them.
    pub keys: &'static [Key],
    /// The keys that say where front-ends find it, and how it waits for them: of a device
    /// [`FRONT_ENDS`].
    pub front_ends: &'static [Key],
    /// Several flags with one `vhost=` are one device of several parts, see [`Values::further`].
    /// Without it they are an error.
    ///
    /// [`Values::further`]: super::Values::further
    pub joins: bool,
    /// An argument that works, for help.
    pub example: &'static str,
}

/// One key. Made by [`Key::new`] and the `const` methods behind it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name in kebab-case. `_` and `-` mean the same when a key is looked up.
    pub name: &'static str,
    /// Other names it had in crosvm.
    pub aliases: &'static [&'static str],
    /// The type of its value.
    pub value: Kind,
    /// What holds when it is not given, spelt as the user would; empty for nothing.
    pub default: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    /// What becomes of it.
    pub effect: Effect,
    /// The device cannot be without it.
    pub required: bool,
    /// A first element without a key is the value of this one.
    pub positional: bool,
    /// No two devices of a command may have the same value (for a flag: be given it).
    pub exclusive: bool,
}

/// The type of a value.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Any text, at most so many bytes long.
    Text {
        /// Bytes, inclusive.
        max: usize,
    },
    /// A path: never a number, never empty, without NUL.
    Path,
    /// `true` or `false`; the bare key is `true`.
    Flag,
    /// A number in decimal, 0x, 0o or 0b.
    Number {
        /// Inclusive.
        min: u64,
        /// Inclusive.
        max: u64,
    },
    /// A number of bytes: as [`Kind::Number`], with an optional suffix k, M, G or T of 1024.
    Size {
        /// Inclusive.
        min: u64,
        /// Inclusive.
        max: u64,
    },
    /// A number in decimal, 0x, 0o or 0b, or the word `auto`.
    NumberOrAuto {
        /// Inclusive.
        min: u64,
        /// Inclusive.
        max: u64,
    },
    /// `[N,N,…]`, or one number.
    Numbers {
        /// Inclusive, each.
        min: u64,
        /// Inclusive, each.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [Choice]),
    /// A PCI address `[DOMAIN:]BUS:DEVICE.FUNCTION`.
    PciAddress,
    /// Where a front-end finds the device: a socket path, or a PCI address.
    Vhost,
}

/// One word of a [`Kind::Choice`].
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The word, in kebab-case.
    pub name: &'static str,
    /// Why it cannot be had here, when it is one of crosvm's that cannot.
    pub refused: Option<&'static str>,
}

/// What becomes of a key that is given a value other than its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The device does it.
    Honoured,
    /// Accepted because `crosvm run` takes it, and said once to change nothing here: the reason.
    Noted(&'static str),
    /// An error, for this reason.
    Refused(&'static str),
}

/// Flags that are no devices.
pub(super) const FLAGS: [&str; 5] = ["disable-sandbox", "jail", "log-level", "help", "version"];

/// The key of every device: where a front-end finds it.
pub const VHOST: Key = Key::new("vhost", Kind::Vhost, VHOST_MEANING)
    .required()
    .exclusive();

/// The key of every device that says how memory is shown behind [`VHOST`].
pub const VVU_MEMORY: Key = Key::new(
    "vvu-memory",
    Kind::Choice(VVU_MEMORY_WORDS),
    VVU_MEMORY_MEANING,
)
.default("files");

/// The key of every device that says for how long it polls its queues.
pub const POLL_US: Key = Key::new(
    "poll-us",
    Kind::NumberOrAuto {
        min: 0,
        max: POLL_US_MAX,
    },
    POLL_MEANING,
)
.default("auto");

/// The keys of every device that say where front-ends find it, and how it waits for them.
pub const FRONT_ENDS: &[Key] = &[VHOST, VVU_MEMORY, POLL_US];

impl Table {
    /// Panics if the table contradicts itself: it is part of the program, and would refuse or
    /// misread what its help promises.
    pub(super) fn assert_sound(&self) {
        let flag = self.device;
        assert!(!FLAGS.contains(&flag), "no device can be called {flag}");
        let keys: Vec<_> = self.all_keys().collect();
        let names = |key: &Key| std::iter::once(key.name).chain(key.aliases.iter().copied());
        for (index, key) in keys.iter().enumerate() {
            let name = key.name;
            let fits =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(
                name.bytes().all(fits),
                "--{flag}: {name} is not in kebab-case"
            );
            assert!(
                key.default.is_empty() || !key.required,
                "--{flag}: {name} needs no default"
            );
            assert!(
                !FLAGS.contains(&name),
                "--{flag}: {name} is a flag of every command"
            );
            default_of(key);
            let mut others = keys.iter().skip(index + 1);
            if let Some(other) = others.find(|other| names(key).any(|name| other.is_called(name))) {
                panic!("--{flag}: {name} is also a name of {}", other.name);
            }
        }
        let positional = keys.iter().filter(|key| key.positional).count();
        assert!(positional <= 1, "--{flag}: only one key can be positional");
    }

    /// All keys of the flag, its own first.
    pub fn all_keys(&self) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().chain(self.front_ends)
    }
}

impl Choice {
    /// A word that can be had.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            refused: None,
        }
    }

    /// A word of crosvm's that cannot be had here.
    pub const fn refused(name: &'static str, reason: &'static str) -> Self {
        Self {
            name,
            refused: Some(reason),
        }
    }
}

impl Key {
    /// An optional, honoured key without a default.
    pub const fn new(name: &'static str, value: Kind, meaning: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            value,
            default: "",
            meaning,
            effect: Effect::Honoured,
            required: false,
            positional: false,
            exclusive: false,
        }
    }

    /// A flag that is off unless given.
    pub const fn flag(name: &'static str, meaning: &'static str) -> Self {
        Self::new(name, Kind::Flag, meaning).default("false")
    }

    /// With what holds when it is not given.
    pub const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// With older names.
    pub const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// A device cannot be without it.
    pub const fn required(self) -> Self {
        Self {
            required: true,
            ..self
        }
    }

    /// A first element without a key is its value.
    pub const fn positional(self) -> Self {
        Self {
            positional: true,
            ..self
        }
    }

    /// No two devices of a command may share its value.
    pub const fn exclusive(self) -> Self {
        Self {
            exclusive: true,
            ..self
        }
    }

    /// Accepted without effect, for this reason.
    pub const fn noted(self, reason: &'static str) -> Self {
        Self {
            effect: Effect::Noted(reason),
            ..self
        }
    }

    /// Refused, for this reason, unless the value is what holds anyway.
    pub const fn refused(self, reason: &'static str) -> Self {
        Self {
            effect: Effect::Refused(reason),
            ..self
        }
    }

    /// Whether the user's spelling names this key.
    pub fn is_called(&self, name: &str) -> bool {
        same_name(self.name, name) || self.aliases.iter().any(|alias| same_name(alias, name))
    }
}

/// crosvm's names were snake_case before they became kebab-case: both are known for ever.
pub(super) fn same_name(ours: &str, theirs: &str) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    ours.len() == theirs.len() && ours.bytes().map(dashed).eq(theirs.bytes().map(dashed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(keys: &'static [Key]) -> Table {
        Table {
            device: "x",
            about: "…",
            keys,
            front_ends: FRONT_ENDS,
            joins: false,
            example: "",
        }
    }

    #[test]
    #[should_panic(expected = "--x: block-size is also a name of size")]
    fn two_keys_of_one_name_are_a_programming_error() {
        const KEYS: &[Key] = &[
            Key::flag("block-size", "…"),
            Key::flag("size", "…").aliases(&["block_size"]),
        ];
        table(KEYS).assert_sound();
    }

    #[test]
    #[should_panic(expected = "--x: vhost is also a name of vhost")]
    fn no_device_has_a_vhost_of_its_own() {
        table(const { &[Key::flag("vhost", "…")] }).assert_sound();
    }

    #[test]
    #[should_panic(expected = "the default of n is not a value of it")]
    fn a_default_out_of_range_is_a_programming_error() {
        const KEYS: &[Key] = &[Key::new("n", Kind::Number { min: 1, max: 2 }, "…").default("3")];
        table(KEYS).assert_sound();
    }

    #[test]
    fn a_key_answers_to_kebab_case_snake_case_and_its_aliases() {
        let key = Key::flag("direct", "…").aliases(&["o-direct"]);
        for name in ["direct", "o_direct", "o-direct"] {
            assert!(key.is_called(name), "{name}");
        }
        assert!(!key.is_called("direct-"));
        assert!(Key::flag("block-size", "…").is_called("block_size"));
        assert!(!Key::flag("block-size", "…").is_called("blocksize"));
    }
}
