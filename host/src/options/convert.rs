//! From the text of one value to the type that its key has. It knows one key at a time; which key
//! an element belongs to is [`super::values`]'s matter.

use vudev_jail::nearest;
use vudev_transports::vvu::{AddressError, PciAddress};

use super::error::repeat;
use super::grammar::{At, Element, Raw, split};
use super::number::{number, show_size, size};
use super::poll::AUTO;
use super::table::{Choice, Key, Kind, same_name};

/// A value of the type that its key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u64>),
    Choice(&'static str),
    /// Only of [`Kind::Vhost`], so that two spellings of one function are one value.
    Function(PciAddress),
}

/// Why a value cannot be the key's.
pub(super) struct Wrong {
    /// Where, if not at the value's beginning.
    pub(super) column: Option<usize>,
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            column: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// The value that holds when the key is not given. That it is well-formed is the table's promise.
pub(super) fn default_of(key: &Key) -> Option<Value> {
    if key.default.is_empty() {
        return None;
    }
    let elements = split(key.default).ok()?;
    let value = match elements.into_iter().next() {
        Some(Element::Bare(value)) => convert(key, value).ok(),
        Some(Element::Pair { .. }) | None => None,
    };
    Some(value.unwrap_or_else(|| panic!("the default of {} is not a value of it", key.name)))
}

pub(super) fn convert(key: &Key, value: At<Raw>) -> Result<Value, Wrong> {
    let text = match (value.what, key.value) {
        (Raw::List(elements), Kind::Numbers { min, max }) => return numbers(&elements, min, max),
        (Raw::List(_), kind) => {
            let what = format!("is a list, not {}", kind.article());
            return Err(Wrong::new(what, "remove the brackets, or quote the value"));
        }
        (Raw::Text { text, quoted: _ }, _) => text,
    };
    match key.value {
        Kind::Text { max } => bounded_text(text, max),
        Kind::Path => checked_path(text),
        Kind::Flag => flag(&text).map(Value::Flag),
        Kind::Number { min, max } => in_range(&text, number(&text), min, max, |n| n.to_string()),
        Kind::NumberOrAuto { .. } if text == AUTO => Ok(Value::Choice(AUTO)),
        Kind::NumberOrAuto { min, max } => {
            let ranged = in_range(&text, number(&text), min, max, |n| n.to_string());
            let none = if min == 0 { " (0: not at all)" } else { "" };
            ranged.map_err(|wrong| Wrong {
                remedy: format!("{}{none}, or {AUTO}", wrong.remedy),
                ..wrong
            })
        }
        Kind::Size { min, max } => in_range(&text, size(&text), min, max, show_size),
        Kind::Numbers { min, max } => numbers(
            &[At {
                column: value.column,
                what: text,
            }],
            min,
            max,
        ),
        Kind::Choice(choices) => choice(&text, choices),
        Kind::PciAddress => pci_address(text),
        Kind::Vhost => vhost(text),
    }
}

fn bounded_text(text: String, max: usize) -> Result<Value, Wrong> {
    if text.len() > max {
        let problem = format!(
            "{} has {} bytes, more than {max}",
            repeat(&text),
            text.len()
        );
        return Err(Wrong::new(problem, "shorten it"));
    }
    Ok(Value::Text(text))
}

fn checked_path(text: String) -> Result<Value, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("the path is empty", "write a path"));
    }
    if text.contains('\0') {
        return Err(Wrong::new(
            "the path contains a NUL",
            "no file can have such a name",
        ));
    }
    Ok(Value::Text(text))
}

fn flag(text: &str) -> Result<bool, Wrong> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Wrong::new(
            format!("{} is neither true nor false", repeat(other)),
            "write true or false, or the key alone for true",
        )),
    }
}

fn in_range(
    text: &str,
    parsed: Result<u64, &'static str>,
    min: u64,
    max: u64,
    show: fn(u64) -> String,
) -> Result<Value, Wrong> {
    let remedy = || format!("write a number from {} to {}", show(min), show(max));
    let number = parsed.map_err(|why| Wrong::new(format!("{} {why}", repeat(text)), remedy()))?;
    if !(min..=max).contains(&number) {
        let side = if number < min { "less" } else { "more" };
        let limit = if number < min { min } else { max };
        let problem = format!("{} is {side} than {}", repeat(text), show(limit));
        return Err(Wrong::new(problem, remedy()));
    }
    Ok(Value::Number(number))
}

fn numbers(elements: &[At<String>], min: u64, max: u64) -> Result<Value, Wrong> {
    let mut numbers = Vec::with_capacity(elements.len());
    for At { column, what } in elements {
        match in_range(what, number(what), min, max, |n| n.to_string()) {
            Ok(Value::Number(number)) => numbers.push(number),
            Ok(other) => unreachable!("a number is a number, not {other:?}"),
            Err(wrong) => {
                return Err(Wrong {
                    column: Some(*column),
                    ..wrong
                });
            }
        }
    }
    Ok(Value::Numbers(numbers))
}

fn choice(text: &str, choices: &'static [Choice]) -> Result<Value, Wrong> {
    let available = || choices.iter().filter(|choice| choice.refused.is_none());
    let Some(choice) = choices.iter().find(|choice| same_name(choice.name, text)) else {
        let remedy = match nearest(text, available().map(|choice| choice.name)) {
            Some(name) => format!("did you mean {name}?"),
            None => available_words(choices),
        };
        return Err(Wrong::new(
            format!("{} is not one of its values", repeat(text)),
            remedy,
        ));
    };
    match choice.refused {
        None => Ok(Value::Choice(choice.name)),
        Some(reason) => Err(Wrong::new(
            format!("{} is not available: {reason}", choice.name),
            available_words(choices),
        )),
    }
}

/// The words of a choice that can be had.
pub(super) fn words(choices: &[Choice]) -> String {
    let words: Vec<_> = choices
        .iter()
        .filter(|choice| choice.refused.is_none())
        .map(|choice| choice.name)
        .collect();
    words.join(", ")
}

/// How a value is chosen.
fn available_words(choices: &[Choice]) -> String {
    let words = words(choices);
    match words.contains(", ") {
        true => format!("write one of {words}"),
        false => format!("write {words}"),
    }
}

fn pci_address(text: String) -> Result<Value, Wrong> {
    const REMEDY: &str = "write [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal, 00:05.0 say";
    match text.parse::<PciAddress>() {
        Ok(_) => Ok(Value::Text(text)),
        Err(AddressError::OutOfRange(why)) => Err(Wrong::new(
            format!("{} is no PCI address, {why}", repeat(&text)),
            REMEDY,
        )),
        Err(AddressError::Shape) => Err(Wrong::new(
            format!("{} is no PCI address", repeat(&text)),
            REMEDY,
        )),
    }
}

fn vhost(text: String) -> Result<Value, Wrong> {
    match text.parse::<PciAddress>() {
        Ok(address) => Ok(Value::Function(address)),
        Err(AddressError::OutOfRange(why)) => Err(Wrong::new(
            format!("{} looks like a PCI address, but {why}", repeat(&text)),
            format!("write ./{text} if it is the path of a socket"),
        )),
        Err(AddressError::Shape) => checked_path(text),
    }
}

impl Kind {
    /// What stands for a value in help and remedies.
    pub(super) fn placeholder(self) -> String {
        match self {
            Self::Text { .. } => "TEXT".to_owned(),
            Self::Path => "PATH".to_owned(),
            Self::Flag => "true|false".to_owned(),
            Self::Number { .. } => "NUMBER".to_owned(),
            Self::NumberOrAuto { .. } => format!("NUMBER|{AUTO}"),
            Self::Size { .. } => "SIZE".to_owned(),
            Self::Numbers { .. } => "[NUMBER,…]".to_owned(),
            Self::Choice(choices) => words(choices).replace(", ", "|"),
            Self::PciAddress => "BUS:DEVICE.FUNCTION".to_owned(),
            Self::Vhost => "PATH|BUS:DEVICE.FUNCTION".to_owned(),
        }
    }

    pub(super) fn article(self) -> &'static str {
        match self {
            Self::Text { .. } => "a text",
            Self::Path => "a path",
            Self::Vhost => "a path or a PCI address",
            Self::Flag => "true or false",
            Self::Number { .. } | Self::Numbers { .. } => "a number",
            Self::NumberOrAuto { .. } => "a number or auto",
            Self::Size { .. } => "a size",
            Self::Choice(_) => "a word",
            Self::PciAddress => "a PCI address",
        }
    }
}
