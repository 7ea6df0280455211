//! From an argument to typed values: a table gives the grammar's elements their meaning, and each
//! value keeps its column, so that whoever opens a file later can still say where its name stood.
//! Pure: nothing is opened here.

use std::path::Path;

use vudev_jail::nearest;

use super::address::{Vhost, VvuMemory};
use super::convert::{Value, Wrong, convert, default_of};
use super::error::{OptionError, Spelling, repeat};
use super::grammar::{At, Element, Raw, end_column, split};
use super::poll::{AUTO, PROCESSORS_MIN, Poll};
use super::table::{Effect, Key, Kind, POLL_US, Table, VHOST, VVU_MEMORY, same_name};

/// The checked values of one device, one for each key that was given or has a default.
///
/// The getters know the table: asking for a key that it has not, for another type than it says,
/// or for a value that need not be there, is an error in the program and panics.
#[derive(Debug, Clone)]
pub struct Values {
    schema: Schema,
    number: usize,
    end: usize,
    entries: Vec<Entry>,
    further: Vec<Self>,
}

/// What a flag's argument may consist of.
#[derive(Debug, Clone, Copy)]
struct Schema {
    table: &'static Table,
    spelling: Spelling,
}

#[derive(Debug, Clone)]
struct Entry {
    key: &'static Key,
    value: Value,
    /// `None` if the value is the key's default.
    column: Option<usize>,
}

impl Values {
    /// Parses the argument of a device's flag.
    ///
    /// # Errors
    /// One of the mistakes the user made, the leftmost of its kind, with key and column.
    pub fn parse(table: &'static Table, argument: &str) -> Result<Self, OptionError> {
        let schema = Schema {
            table,
            spelling: Spelling::Argument,
        };
        let elements = split(argument).map_err(|wrong| {
            let error = schema.error(wrong.problem).column(Some(wrong.column));
            let error = wrong
                .key
                .into_iter()
                .fold(error, |error, key| error.key(&key));
            error.remedy(wrong.remedy)
        })?;
        let assignments = schema.assign(elements)?;
        Self::of(schema, assignments, end_column(argument))
    }

    /// Of keys that are arguments of their own, each with its value.
    ///
    /// # Errors
    /// As [`Values::parse`], without columns.
    pub(super) fn of_words(
        table: &'static Table,
        words: Vec<(&'static Key, String)>,
    ) -> Result<Self, OptionError> {
        let schema = Schema {
            table,
            spelling: Spelling::Words,
        };
        let assignments = words.into_iter().map(|(key, text)| Schema::word(key, text));
        Self::of(schema, assignments.collect(), 0)
    }

    fn of(schema: Schema, assignments: Vec<Assignment>, end: usize) -> Result<Self, OptionError> {
        let mut values = Self {
            schema,
            number: 0,
            end,
            entries: Vec::new(),
            further: Vec::new(),
        };
        for assignment in assignments {
            values.add(assignment)?;
        }
        values.complete()?;
        Ok(values)
    }

    /// The same, as the device with this number, counted from 0, of its kind.
    pub(super) fn of_device(self, number: usize) -> Self {
        Self { number, ..self }
    }

    /// Takes in another flag's values for the same device, see [`Table::joins`].
    pub(crate) fn join(&mut self, further: Self) {
        self.further.push(further.of_device(self.number));
    }

    /// The values of the further flags for the same device, if its kind [`Table::joins`].
    pub fn further(&self) -> &[Self] {
        &self.further
    }

    /// Whether the table has this key.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.schema.table.all_keys().any(|known| known.name == key)
    }

    /// Whether the user gave the key; else its default holds, if it has one.
    pub fn is_given(&self, key: &str) -> bool {
        self.column(key).is_some()
    }

    /// The column of the key's value in the argument.
    pub fn column(&self, key: &str) -> Option<usize> {
        self.schema.assert_known(key);
        self.entry(key).and_then(|entry| entry.column)
    }

    /// An error about the key, where the user wrote its value or else where it would be written.
    pub fn error(&self, key: &str, problem: impl std::fmt::Display) -> OptionError {
        let column = self.column(key).or(Some(self.end));
        let error = self.schema.error(problem).key(key).column(column);
        error.of_device(self.number)
    }

    /// What the user should know about keys that are accepted but change nothing here, one line
    /// each. The same key of another device of this kind gives the same line.
    pub fn notes(&self) -> Vec<String> {
        let note = |entry: &Entry| match entry.key.effect {
            Effect::Noted(reason) if !self.is_default(entry) => Some(format!(
                "--{}: {}: accepted, but changes nothing here: {reason}",
                self.schema.table.device, entry.key.name
            )),
            Effect::Noted(_) | Effect::Honoured | Effect::Refused(_) => None,
        };
        let further = self.further.iter().flat_map(Self::notes);
        self.entries
            .iter()
            .filter_map(note)
            .chain(further)
            .collect()
    }

    /// A text, a path or a PCI address that is required or has a default.
    pub fn text(&self, key: &str) -> &str {
        self.optional_text(key).unwrap_or_else(|| self.absent(key))
    }

    /// A text, a path or a PCI address.
    pub fn optional_text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            other => mistyped(key, other),
        }
    }

    /// A path that is required or has a default.
    pub fn path(&self, key: &str) -> &Path {
        Path::new(self.text(key))
    }

    /// A path.
    pub fn optional_path(&self, key: &str) -> Option<&Path> {
        self.optional_text(key).map(Path::new)
    }

    /// A flag; off if it is neither given nor has a default.
    pub fn flag(&self, key: &str) -> bool {
        match self.value(key) {
            None => false,
            Some(Value::Flag(on)) => *on,
            Some(other) => mistyped(key, other),
        }
    }

    /// A number or size that is required or has a default.
    pub fn number(&self, key: &str) -> u64 {
        self.optional_number(key)
            .unwrap_or_else(|| self.absent(key))
    }

    /// A number or size that is required or has a default, of a type that holds all that the table
    /// allows.
    pub fn number_as<N: TryFrom<u64>>(&self, key: &str) -> N {
        let number = N::try_from(self.number(key)).ok();
        number.unwrap_or_else(|| panic!("the table allows {key} more than its type holds"))
    }

    /// A number or size.
    pub fn optional_number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Number(number) => Some(*number),
            other => mistyped(key, other),
        }
    }

    /// A number that is required or has a default, or `None` for the word `auto`.
    pub fn number_or_auto(&self, key: &str) -> Option<u64> {
        match self.value(key) {
            None => self.absent(key),
            Some(Value::Choice(AUTO)) => None,
            Some(Value::Number(number)) => Some(*number),
            Some(other) => mistyped(key, other),
        }
    }

    /// A list of numbers; empty if it is not there.
    pub fn numbers(&self, key: &str) -> &[u64] {
        match self.value(key) {
            None => &[],
            Some(Value::Numbers(numbers)) => numbers,
            Some(other) => mistyped(key, other),
        }
    }

    /// One of a choice's words, as the table spells it; required or with a default.
    pub fn choice(&self, key: &str) -> &'static str {
        match self.value(key) {
            None => self.absent(key),
            Some(Value::Choice(word)) => word,
            Some(other) => mistyped(key, other),
        }
    }

    /// Where front-ends connect.
    pub fn vhost(&self) -> Vhost<'_> {
        match self.value(VHOST.name) {
            None => self.absent(VHOST.name),
            Some(Value::Function(address)) => Vhost::Function(*address),
            Some(Value::Text(path)) => Vhost::Socket(Path::new(path)),
            Some(other) => mistyped(VHOST.name, other),
        }
    }

    /// Where a function behind [`Vhost::Function`] shows memory.
    pub(crate) fn vvu_memory(&self) -> VvuMemory {
        let word = self.choice(VVU_MEMORY.name);
        VvuMemory::of_word(word).unwrap_or_else(|| panic!("nothing is meant by {word}"))
    }

    /// For how long it polls; of a kind that has no such key not at all.
    pub(crate) fn poll(&self) -> Poll {
        if !self.knows(POLL_US.name) {
            return Poll::Us(0);
        }
        self.number_or_auto(POLL_US.name)
            .map_or(Poll::Auto, Poll::Us)
    }

    /// What to say of polling that was asked for and cannot be on so many processors.
    pub(super) fn vain(&self, processors: u32) -> Option<String> {
        let name = POLL_US.name;
        let is_asked = self.knows(name) && self.is_given(name) && self.poll() != Poll::Us(0);
        (is_asked && processors < PROCESSORS_MIN).then(|| {
            format!(
                "--{}: {name}: accepted, but changes nothing here: it would poll on the only \
                 processor that it may run on",
                self.schema.table.device
            )
        })
    }

    /// Whether the value of `key` is the same in both.
    pub(crate) fn agrees(&self, other: &Self, key: &str) -> bool {
        self.value(key) == other.value(key)
    }

    /// The keys that no two devices may share, as they were given, and in whose argument.
    pub(super) fn exclusive(&self) -> impl Iterator<Item = (&Self, &'static str, &Value)> {
        let all = std::iter::once((self, true)).chain(self.further.iter().map(|v| (v, false)));
        all.flat_map(|(values, is_first)| {
            let told = move |entry: &&Entry| {
                let shared = !is_first && entry.key.name == VHOST.name;
                entry.key.exclusive && !shared && !values.is_default(entry)
            };
            let told = values.entries.iter().filter(told);
            told.map(move |entry| (values, entry.key.name, &entry.value))
        })
    }

    fn add(&mut self, assignment: Assignment) -> Result<(), OptionError> {
        let Assignment { key, column, value } = assignment;
        let value_column = value.column;
        if let Some(first) = self.column(key.name) {
            let problem = match self.schema.spelling {
                Spelling::Argument => {
                    format!("is given again, it already stands at column {first}")
                }
                Spelling::Words => "is given twice".to_owned(),
            };
            let error = self
                .schema
                .error(problem)
                .key(key.name)
                .column(Some(column));
            return Err(error.remedy(self.schema.twice(key)));
        }
        let wrong = |Wrong {
                         column,
                         problem,
                         remedy,
                     }: Wrong| {
            let error = self.schema.error(problem).key(key.name);
            error
                .column(Some(column.unwrap_or(value_column)))
                .remedy(remedy)
        };
        let value = convert(key, value).map_err(wrong)?;
        let entry = Entry {
            key,
            value,
            column: Some(value_column),
        };
        match key.effect {
            Effect::Refused(reason) if !self.is_default(&entry) => {
                return Err(wrong(Wrong::new(
                    format!("is not available: {reason}"),
                    "leave it out",
                )));
            }
            Effect::Refused(_) | Effect::Noted(_) | Effect::Honoured => {}
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Finds what is missing, and adds the defaults of what may be left out.
    fn complete(&mut self) -> Result<(), OptionError> {
        for key in self.schema.table.all_keys() {
            if self.value(key.name).is_some() {
                continue;
            }
            if key.required {
                let error = self
                    .schema
                    .error("is missing")
                    .key(key.name)
                    .column(Some(self.end));
                let spelling = self.schema.spelling;
                let how = match key.value {
                    Kind::Vhost => {
                        let pair = spelling.pair(key.name, "PATH");
                        format!("add {pair}, the socket that front-ends connect to")
                    }
                    kind => format!("add {}", spelling.pair(key.name, &kind.placeholder())),
                };
                return Err(error.remedy(how));
            }
            if let Some(value) = default_of(key) {
                self.entries.push(Entry {
                    key,
                    value,
                    column: None,
                });
            }
        }
        Ok(())
    }

    /// Whether the value is what would hold without it.
    fn is_default(&self, entry: &Entry) -> bool {
        default_of(entry.key).as_ref() == Some(&entry.value)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key.name == key)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.schema.assert_known(key);
        self.entry(key).map(|entry| &entry.value)
    }

    fn absent(&self, key: &str) -> ! {
        panic!(
            "--{} may be without {key}: give the key `.required()` or `.default(…)`, or use the \
             optional getter",
            self.schema.table.device
        )
    }
}

fn mistyped(key: &str, value: &Value) -> ! {
    panic!("{key} is not read as what its table says: {value:?}")
}

/// One element, with its key found.
struct Assignment {
    key: &'static Key,
    /// Where the element begins.
    column: usize,
    value: At<Raw>,
}

impl Schema {
    /// A key that is an argument of its own, and its value as it stands. A list is written as in
    /// an argument for all keys.
    fn word(key: &'static Key, text: String) -> Assignment {
        let list = match key.value {
            Kind::Numbers { .. } => split(&text).ok().and_then(|mut elements| {
                let last = elements.pop();
                last.filter(|_| elements.is_empty())
            }),
            _ => None,
        };
        let what = match list {
            Some(Element::Bare(At { what, .. })) => what,
            Some(Element::Pair { .. }) | None => Raw::Text { text, quoted: true },
        };
        Assignment {
            key,
            column: 0,
            value: At { column: 0, what },
        }
    }

    fn error(&self, problem: impl std::fmt::Display) -> OptionError {
        OptionError::new(self.table.device, problem).spelled(self.spelling)
    }

    fn find(&self, name: &str) -> Option<&'static Key> {
        self.table.all_keys().find(|key| key.is_called(name))
    }

    fn assert_known(&self, name: &str) {
        let known = self.table.all_keys().any(|key| key.name == name);
        assert!(known, "--{} has no key {name}", self.table.device);
    }

    fn twice(&self, key: &Key) -> &'static str {
        match key.positional && self.spelling == Spelling::Argument {
            true => "remove one; a first element without `=` is this key's value",
            false => "remove one",
        }
    }

    /// Finds each element's key. A first element without `=` is the positional value, unless it
    /// can only be a flag.
    fn assign(&self, elements: Vec<Element>) -> Result<Vec<Assignment>, OptionError> {
        let positional = self
            .table
            .all_keys()
            .find(|key| key.positional)
            .filter(|key| {
                let first = elements.first();
                !first.is_some_and(|first| self.is_but_a_flag(first, key, &elements))
            });
        elements
            .into_iter()
            .enumerate()
            .map(|(index, element)| match (element, positional) {
                (Element::Pair { key, value }, _) => self.pair(&key, value),
                (Element::Bare(value), Some(key)) if index == 0 => Ok(Assignment {
                    key,
                    column: value.column,
                    value,
                }),
                (Element::Bare(value), Some(_) | None) => self.bare(&value),
            })
            .collect()
    }

    /// Whether the first element names a flag, and cannot be the positional value: that one is
    /// given by its key anyway, or has no such word.
    fn is_but_a_flag(&self, first: &Element, positional: &Key, elements: &[Element]) -> bool {
        let Element::Bare(At {
            what: Raw::Text {
                text,
                quoted: false,
            },
            ..
        }) = first
        else {
            return false;
        };
        let names_a_flag = self
            .find(text)
            .is_some_and(|key| matches!(key.value, Kind::Flag));
        let given_by_key = elements.iter().any(|element| match element {
            Element::Pair { key, value: _ } => positional.is_called(&key.what),
            Element::Bare(_) => false,
        });
        let has_no_such_word = matches!(positional.value, Kind::Choice(choices)
            if !choices.iter().any(|choice| same_name(choice.name, text)));
        names_a_flag && (given_by_key || has_no_such_word)
    }

    fn pair(&self, name: &At<String>, value: At<Raw>) -> Result<Assignment, OptionError> {
        let key = self
            .find(&name.what)
            .ok_or_else(|| self.unknown(&name.what, name.column))?;
        Ok(Assignment {
            key,
            column: name.column,
            value,
        })
    }

    /// A flag without a value; nothing else may stand without one.
    fn bare(&self, value: &At<Raw>) -> Result<Assignment, OptionError> {
        let column = value.column;
        let Raw::Text {
            text,
            quoted: false,
        } = &value.what
        else {
            let error = self
                .error("a value stands without a key")
                .column(Some(column));
            return Err(error.remedy("write KEY=VALUE"));
        };
        let key = self.find(text).ok_or_else(|| self.unknown(text, column))?;
        if matches!(key.value, Kind::Flag) {
            let what = Raw::Text {
                text: "true".to_owned(),
                quoted: false,
            };
            return Ok(Assignment {
                key,
                column,
                value: At { column, what },
            });
        }
        let error = self
            .error("needs a value")
            .key(key.name)
            .column(Some(column));
        Err(error.remedy(format!("write {}={}", key.name, key.value.placeholder())))
    }

    fn unknown(&self, name: &str, column: usize) -> OptionError {
        let names = self.table.all_keys().map(|key| key.name);
        let remedy = match nearest(name, names) {
            Some(name) => format!("did you mean {name}?"),
            None => format!("see `help {}` for its keys", self.table.device),
        };
        let problem = format!("unknown key {}", repeat(name));
        self.error(problem).column(Some(column)).remedy(remedy)
    }
}
