//! `--rng`: its keys, the opening of its source, and the making of the entropy device.

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};
use vudev_devices::rng::{self, RateLimit};

use super::{Open, open};
use crate::kind::{CreateError, DeviceKind, Given, Opened};
use crate::listen::describe;
use crate::options::{FRONT_ENDS, Key, Kind, OptionError, Table, Values, shown};

/// The kind of `--rng`.
#[derive(Debug)]
pub struct Rng;

/// What an entropy device is made of, beside the descriptor of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngDescription {
    /// The source is the one descriptor; without it the bytes are the kernel's.
    pub source: bool,
    /// How many bytes the guest gets in which time.
    pub limit: Option<RateLimit>,
}

static TABLE: Table = Table {
    device: "rng",
    about: "an entropy source (virtio-rng): /dev/hwrng of a Linux guest",
    keys: &[
        Key::new(
            "source",
            Kind::Path,
            "give the bytes of this file, FIFO or device, and none once it has ended; without it \
             they are the kernel's",
        )
        .aliases(&["filename"])
        .positional(),
        Key::new(
            "max-bytes",
            Kind::Size {
                min: 1,
                max: i64::MAX.cast_unsigned(),
            },
            "give at most so many bytes in a period; without it as many as the guest asks for",
        ),
        Key::new(
            "period",
            Kind::Number {
                min: 1,
                max: u32::MAX as u64,
            },
            "the milliseconds of a period of max-bytes",
        )
        .default("65536"),
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "max-bytes=1k,period=1000,vhost=/tmp/vu-rng",
};

impl DeviceKind for Rng {
    const NAME: &'static str = "rng";
    const POLICY: &'static str = "rng";

    type Description = RngDescription;
    type Device = rng::Rng;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<RngDescription>, OptionError> {
        let limit = values
            .optional_number("max-bytes")
            .map(|max_bytes| RateLimit {
                max_bytes,
                period_ms: values.number_as("period"),
            });
        if limit.is_none() && values.is_given("period") {
            let error = values.error("period", "there is no limit for a period");
            return Err(error.remedy("give max-bytes too, or leave period out"));
        }
        let source = values.optional_path("source").map(|_| source(values));
        let source = source.transpose()?;
        let description = RngDescription {
            source: source.is_some(),
            limit,
        };
        Ok(Opened {
            notes: values.notes(),
            ..Opened::new(
                description,
                source.into_iter().map(|it| it.descriptor).collect(),
            )
        })
    }

    fn operations(_description: &RngDescription) -> u32 {
        rng::OPERATIONS
    }

    fn create(mut given: Given<RngDescription>) -> Result<rng::Rng, CreateError> {
        let RngDescription { source, limit } = given.description;
        let source = if source {
            let [source] = given.take_descriptors()?;
            Some(source)
        } else {
            let [] = given.take_descriptors()?;
            None
        };
        Ok(rng::Rng::new(&given.handle, source, limit))
    }
}

fn source(values: &Values) -> Result<Open, OptionError> {
    let opened = open(values, "source", OFlags::RDONLY)?;
    match opened.file_type {
        FileType::RegularFile | FileType::CharacterDevice => Ok(opened),
        // With a writer of our own a FIFO does not end when its writers leave. Who may only read
        // it has to do with what there is.
        FileType::Fifo => match open(values, "source", OFlags::RDWR) {
            Ok(
                both @ Open {
                    file_type: FileType::Fifo,
                    ..
                },
            ) => Ok(both),
            Ok(_) | Err(_) => Ok(opened),
        },
        other => {
            let what = describe(other);
            let problem = format!("{} is {what}", shown(values.path("source")));
            Err(values
                .error("source", problem)
                .remedy("write the path of a file, a FIFO or a character device"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(argument: &str) -> Result<RngDescription, String> {
        let values = Values::parse(&TABLE, &format!("{argument},vhost=s"));
        let opened = values.and_then(|values| Rng::open(&values));
        opened
            .map(|opened| opened.description)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_limit_is_so_many_bytes_in_qemus_period_unless_another_is_given() {
        let limit = |argument| open(argument).unwrap().limit;
        assert_eq!(limit("source=/dev/null"), None);
        let expected = |max_bytes, period_ms| {
            Some(RateLimit {
                max_bytes,
                period_ms,
            })
        };
        assert_eq!(limit("max-bytes=1k"), expected(1024, 65_536));
        assert_eq!(limit("max_bytes=7,period=20"), expected(7, 20));
    }

    #[test]
    fn a_period_without_a_limit_and_values_of_nothing_are_refused() {
        for (argument, problem) in [
            (
                "period=20",
                "period: column 8: there is no limit for a period",
            ),
            ("max-bytes=0", "max-bytes: column 11: "),
            ("max-bytes=1,period=0", "period: column 20: "),
        ] {
            let error = open(argument).unwrap_err();
            assert!(error.contains(problem), "{argument}: {error}");
        }
    }

    #[test]
    fn a_source_is_a_file_a_fifo_or_a_character_device() {
        assert!(open("/dev/urandom").unwrap().source);
        assert!(open("filename=/proc/self/comm").unwrap().source);
        let error = open("source=/").unwrap_err();
        assert!(error.contains("\"/\" is a directory"), "{error}");
        let error = open("source=/nowhere/at/all").unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
