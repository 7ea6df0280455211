//! The texts of `--help`, against the tables they are made from.

use super::{DISK, PORT};
use crate::kinds::vvu_proxy::VvuProxy;
use crate::kinds::{Block, Serial};
use crate::options::help::Topic;
use crate::options::{CommandLine, Values};
use crate::registry::ProcessKind;

const LINE: CommandLine<'static> = CommandLine {
    program: "vudev",
    tables: &[&PORT, &DISK],
};

#[test]
fn the_overview_teaches_synopsis_examples_devices_options_and_statuses() {
    let text = LINE.help(Topic::Overview);
    for part in [
        "Usage:\n  vudev [OPTION…] --DEVICE KEY=VALUE,…",
        "  vudev --disk path=disk.img,vhost=/tmp/vu-disk\n",
        "  vudev --port vhost=/tmp/vu-port \\\n        --disk path=disk.img,vhost=/tmp/vu-disk\n",
        "  --disk KEY=VALUE,…\n      a disk for tests\n",
        "--disable-sandbox",
        "--log-level LEVEL",
        "Exit status:\n  0\n      every device ended as asked\n",
        "vudev help port, vudev help disk.",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
}

#[test]
fn a_device_lists_each_key_with_type_range_default_meaning_and_fate() {
    let text = LINE.help(Topic::Device(&DISK));
    for part in [
        "  [path=]PATH   (required)\n      the image\n",
        "  ro[=true|false]   (default false)\n      read-only\n",
        "      no cache; also called o-direct\n",
        "  block-size=SIZE   (512 to 4k, default 512)\n      in bytes\n",
        "  id=TEXT   (at most 20 bytes, no default)\n",
        "  cache=write-back|none   (default write-back)\n\
         \x20     how it caches. Not unsafe: it loses data\n",
        "\nAccepted because crosvm takes them, without effect here:\n  root[=true|false]\n",
        "\nKnown from crosvm, refused here:\n  packed[=true|false]\n\
         \x20     packed rings: they are not built\n",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
}

#[test]
fn every_key_of_every_device_is_in_its_help_and_every_example_parses() {
    for table in [Serial::table(), Block::table(), VvuProxy::table()] {
        let text = LINE.help(Topic::Device(table));
        for key in table.all_keys() {
            assert!(text.contains(key.name), "{}: {}", table.device, key.name);
            assert!(!key.meaning.is_empty(), "{}: {}", table.device, key.name);
        }
        Values::parse(table, table.example).expect("the example of the help text");
    }
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    let tables = [Serial::table(), Block::table(), VvuProxy::table()];
    let line = CommandLine {
        program: "vudev",
        tables: &tables,
    };
    let topics = [
        Topic::Overview,
        Topic::Jail,
        Topic::Check,
        Topic::Device(tables[0]),
        Topic::Device(tables[1]),
        Topic::Device(tables[2]),
    ];
    for text in topics.map(|topic| line.help(topic)) {
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    }
}
