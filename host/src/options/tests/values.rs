//! Values of keys: kinds, columns, aliases, and that no text panics.

use std::path::Path;

use proptest::prelude::*;

use super::{DISK, PORT};
use crate::options::{Poll, Values, Vhost, VvuMemory, quote};

fn disk(argument: &str) -> Values {
    Values::parse(&DISK, argument).unwrap_or_else(|error| panic!("{argument}: {error}"))
}

fn wrong(argument: &str) -> String {
    match Values::parse(&DISK, argument) {
        Ok(values) => panic!("{argument}: {values:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_kind_of_value_is_read_as_its_type() {
    let values = disk(
        "path=disk.img,ro,block-size=4k,queues=0b1000,id=\"a,b\",sizes=[1,0x2],cache=none,\
         pci-address=00:05.0,vhost=/tmp/vu",
    );
    assert_eq!(values.path("path"), Path::new("disk.img"));
    assert!(values.flag("ro") && !values.flag("direct"));
    assert_eq!(
        (values.number("block-size"), values.number("queues")),
        (4096, 8)
    );
    assert_eq!(values.optional_text("id"), Some("a,b"));
    assert_eq!(values.numbers("sizes"), [1, 2]);
    assert_eq!(values.choice("cache"), "none");
    assert_eq!(values.text("pci-address"), "00:05.0");
    assert_eq!(values.vhost(), Vhost::Socket(Path::new("/tmp/vu")));
}

#[test]
fn what_is_not_given_has_its_default() {
    let values = disk("disk.img,vhost=s");
    assert_eq!(
        (values.number("block-size"), values.number("queues")),
        (512, 4)
    );
    assert_eq!(values.choice("cache"), "write-back");
    assert_eq!(values.optional_text("id"), None);
    assert_eq!(values.numbers("sizes"), [0; 0]);
    assert!(!values.is_given("queues") && values.is_given("path"));
}

#[test]
fn vhost_may_stand_anywhere() {
    for argument in ["vhost=s,path=i,ro", "path=i,vhost=s,ro", "i,ro,vhost=s"] {
        let values = disk(argument);
        assert_eq!(
            (values.text("path"), values.vhost()),
            ("i", Vhost::Socket(Path::new("s"))),
            "{argument}"
        );
    }
}

#[test]
fn a_path_of_digits_is_a_path() {
    for path in ["10", "0x10", "true", "1.5", "-"] {
        assert_eq!(
            disk(&format!("vhost=1,path={path}")).path("path"),
            Path::new(path)
        );
    }
    let path = Path::new("0x1");
    assert_eq!(disk("10,vhost=0x1").vhost(), Vhost::Socket(path));
}

#[test]
fn old_names_and_underscores_mean_the_same_key() {
    let values = disk("i,o_direct,block_size=1024,cache=write_back,vhost=s");
    assert!(values.flag("direct"));
    assert_eq!(
        (values.number("block-size"), values.choice("cache")),
        (1024, "write-back")
    );
}

#[test]
fn a_first_element_without_a_key_is_the_positional_value() {
    assert_eq!(disk("ro,vhost=s").path("path"), Path::new("ro"));
    assert_eq!(
        disk("./a=b.img,vhost=s").path("path"),
        Path::new("./a=b.img")
    );
    assert_eq!(disk("'a,b.img',vhost=s").path("path"), Path::new("a,b.img"));
}

#[test]
fn a_first_flag_is_a_flag_when_the_positional_value_is_given_by_its_key() {
    let values = disk("ro,vhost=s,path=i");
    assert!(values.flag("ro"));
    assert_eq!(values.path("path"), Path::new("i"));
    assert!(
        Values::parse(&PORT, "stdin,vhost=s")
            .expect("good")
            .flag("stdin")
    );
}

/// Arguments, and what is said of them.
const MISTAKES: &[(&str, &str)] = &[
    (
        "path=",
        "--disk: path: column 6: the value is empty: write a value behind the `=`",
    ),
    (
        "path=\"\"",
        "--disk: path: column 6: the path is empty: write a path",
    ),
    (
        "i,pth=x,vhost=s",
        "--disk: column 3: unknown key \"pth\": did you mean path?",
    ),
    (
        "i,frobnicate,vhost=s",
        "--disk: column 3: unknown key \"frobnicate\": see `help disk` for its keys",
    ),
    (
        "i,ro,ro,vhost=s",
        "--disk: ro: column 6: is given again, it already stands at column 3: remove one",
    ),
    (
        "i,o_direct,direct=true,vhost=s",
        "--disk: direct: column 12: is given again, it already stands at column 3: remove one",
    ),
    (
        "i,path=j,vhost=s",
        "--disk: path: column 3: is given again, it already stands at column 1: \
          remove one; a first element without `=` is this key's value",
    ),
    (
        "i,ro=yes,vhost=s",
        "--disk: ro: column 6: \"yes\" is neither true nor false: \
          write true or false, or the key alone for true",
    ),
    (
        "i,queues=17,vhost=s",
        "--disk: queues: column 10: \"17\" is more than 16: write a number from 1 to 16",
    ),
    (
        "i,queues=0,vhost=s",
        "--disk: queues: column 10: \"0\" is less than 1: write a number from 1 to 16",
    ),
    (
        "i,queues=4k,vhost=s",
        "--disk: queues: column 10: \"4k\" is not a number in decimal, 0x, 0o or 0b: \
          write a number from 1 to 16",
    ),
    (
        "i,block-size=8k,vhost=s",
        "--disk: block-size: column 14: \"8k\" is more than 4k: \
          write a number from 512 to 4k",
    ),
    (
        "i,sizes=[1,10],vhost=s",
        "--disk: sizes: column 12: \"10\" is more than 9: write a number from 1 to 9",
    ),
    (
        "i,id=[a],vhost=s",
        "--disk: id: column 6: is a list, not a text: remove the brackets, or quote the value",
    ),
    (
        "i,id=123456789012345678901,vhost=s",
        "--disk: id: column 6: \"123456789012345678901\" has 21 bytes, \
          more than 20: shorten it",
    ),
    (
        "i,cache=nine,vhost=s",
        "--disk: cache: column 9: \"nine\" is not one of its values: did you mean none?",
    ),
    (
        "i,cache=unsafe,vhost=s",
        "--disk: cache: column 9: unsafe is not available: it loses data: \
          write one of write-back, none",
    ),
    (
        "i,packed,vhost=s",
        "--disk: packed: column 3: is not available: they are not built: leave it out",
    ),
    (
        "i,id,vhost=s",
        "--disk: id: column 3: needs a value: write id=TEXT",
    ),
    (
        "i,\"ro\",vhost=s",
        "--disk: column 3: a value stands without a key: write KEY=VALUE",
    ),
    (
        "i,pci-address=5,vhost=s",
        "--disk: pci-address: column 15: \"5\" is no PCI address: \
          write [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal, 00:05.0 say",
    ),
    (
        "i,ro",
        "--disk: vhost: column 5: is missing: \
             add vhost=PATH, the socket that front-ends connect to",
    ),
    ("", "--disk: path: column 1: is missing: add path=PATH"),
    (
        "i,vhost=00:05.0,vvu-memory=file",
        "--disk: vvu-memory: column 28: \"file\" is not one of its values: did you mean files?",
    ),
    (
        "i,vhost=s,poll-us=1001",
        "--disk: poll-us: column 19: \"1001\" is more than 1000: \
          write a number from 0 to 1000 (0: not at all), or auto",
    ),
    (
        "i,vhost=s,poll-us=often",
        "--disk: poll-us: column 19: \"often\" is not a number in decimal, 0x, 0o or 0b: \
          write a number from 0 to 1000 (0: not at all), or auto",
    ),
    (
        "i,vhost=00:25.0",
        "--disk: vhost: column 9: \"00:25.0\" looks like a PCI address, but its device \
             is over 1f: \
          write ./00:25.0 if it is the path of a socket",
    ),
];

#[test]
fn each_mistake_is_one_line_with_device_key_column_and_remedy() {
    for &(argument, text) in MISTAKES {
        assert_eq!(wrong(argument), text, "{argument}");
    }
}

#[test]
fn an_address_with_a_dot_slash_is_a_path() {
    let path = Path::new("./00:05.0");
    assert_eq!(disk("i,vhost=./00:05.0").vhost(), Vhost::Socket(path));
}

#[test]
fn how_long_to_poll_is_a_number_or_left_to_the_device() {
    assert_eq!(disk("i,vhost=s").poll(), Poll::Auto);
    assert_eq!(disk("i,vhost=s,poll-us=auto").poll(), Poll::Auto);
    for (argument, us) in [
        ("poll-us=0", 0),
        ("poll_us=0x10", 16),
        ("poll-us=1000", 1000),
    ] {
        let values = disk(&format!("i,vhost=s,{argument}"));
        assert_eq!(values.poll(), Poll::Us(us));
    }
}

#[test]
fn an_address_is_a_function_whose_memory_lies_as_the_user_says() {
    let function = Vhost::Function("0000:00:05.0".parse().unwrap());
    for argument in ["i,vhost=00:05.0", "i,vhost=0000:00:05.0"] {
        let values = disk(argument);
        assert_eq!(values.vhost(), function, "{argument}");
        assert_eq!(values.vvu_memory(), VvuMemory::Files);
    }
    let values = disk("i,vhost=00:05.0,vvu_memory=regions");
    assert_eq!(values.vvu_memory(), VvuMemory::Regions);
}

#[test]
fn what_holds_anyway_is_neither_refused_nor_noted() {
    let values = disk("i,packed=false,root=false,vhost=s");
    assert_eq!(values.notes(), [""; 0]);
}

#[test]
fn what_only_a_vmm_needs_is_accepted_and_noted() {
    let notes = disk("i,root,pci-address=00:05.0,vhost=s").notes();
    assert_eq!(
        notes,
        [
            "--disk: root: accepted, but changes nothing here: a VMM's matter",
            "--disk: pci-address: accepted, but changes nothing here: a VMM's matter",
        ]
    );
}

#[test]
fn a_later_error_still_knows_the_column() {
    let values = disk("ro=false,path=i,vhost=s");
    let error = values.error("path", "cannot be opened").remedy("make it");
    assert_eq!(
        error.to_string(),
        "--disk: path: column 15: cannot be opened: make it"
    );
    let error = values.error("id", "is needed here");
    assert_eq!(error.to_string(), "--disk: id: column 24: is needed here");
}

#[test]
fn hostile_text_stays_on_one_line() {
    let error = wrong("i,\u{1b}[2J\nblock-1: fine,vhost=s");
    assert!(!error.contains(char::is_control), "{error}");
    let error = wrong(&format!("i,{},vhost=s", "x".repeat(10_000)));
    assert!(error.len() < 300, "{error}");
}

#[test]
#[should_panic(
    expected = "--disk may be without id: give the key `.required()` or `.default(…)`, or"
)]
fn an_optional_key_that_is_read_as_if_it_were_there_is_told_with_the_remedies() {
    let values = Values::parse(&DISK, "path=a,vhost=/s").unwrap();
    values.text("id");
}

#[test]
#[should_panic(expected = "--disk has no key pat")]
fn a_getter_of_a_key_that_the_table_has_not_is_a_programming_error() {
    disk("i,vhost=s").text("pat");
}

proptest! {
    #[test]
    fn no_argument_panics_and_each_column_is_within_it(argument in ".*") {
        check(&argument)?;
    }

    #[test]
    fn no_near_miss_panics(
        elements in prop::collection::vec(
            "(path|ro|queues|sizes|id|cache|vhost|block_size|pci-address)?\
             (=[\"'\\[\\]\\\\a-z0-9:.]{0,6})?",
            0..6,
        ),
    ) {
        check(&elements.join(","))?;
    }

    #[test]
    fn any_text_comes_through_quotes(id in "[^\0]{0,5}", path in "[^\0]{1,40}") {
        let argument = format!("id={},path={},vhost=s", quote(&id), quote(&path));
        let values = Values::parse(&DISK, &argument).expect("good");
        prop_assert_eq!((values.text("id"), values.text("path")), (id.as_str(), path.as_str()));
    }
}

fn check(argument: &str) -> Result<(), TestCaseError> {
    if let Err(error) = Values::parse(&DISK, argument) {
        let column = error.at().expect("each mistake has a column");
        prop_assert!(
            (1..=argument.chars().count() + 1).contains(&column),
            "{}",
            error
        );
        prop_assert!(!error.to_string().contains(char::is_control));
    }
    Ok(())
}
