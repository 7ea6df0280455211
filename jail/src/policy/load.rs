//! Follows `@include` and merges the rules of all parts.

use std::collections::BTreeMap;
use std::fmt;

use super::parse::{Content, Statement, parse};
use super::token::{Position, SyntaxError};
use super::{Action, Arch, Filter, Policy, Rule};
use crate::source::Source;
use crate::suggest::nearest;

/// Files that include each other, one below the other; minijail's own bound.
pub const INCLUDE_DEPTH_MAX: usize = 10;

/// Filters of one system call; each is an instruction at least, of the kernel's 4096.
const FILTERS_MAX: usize = 1024;

/// Files that one policy may be made of, each inclusion counted: a few that include each other many
/// times could otherwise be read without end.
const INCLUDES_MAX: usize = 256;

/// A policy or ring list that cannot be used: where, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct PolicyError {
    /// The file as [`Source::label`] calls it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

impl PolicyError {
    fn new(file: &str, at: Position, message: impl Into<String>) -> Self {
        let Position { line, column } = at;
        Self {
            file: file.to_owned(),
            line,
            column,
            message: message.into(),
        }
    }

    pub(super) fn whole_file(file: &str, error: &dyn std::error::Error) -> Self {
        Self::new(file, Position { line: 1, column: 1 }, error.to_string())
    }
}

/// Endings of the names of policies that may be loaded; all others are parts
/// (`seccomp/README.md`).
const LOADABLE: [&str; 3] = ["_device", "_device_vhost_user", "_device_vvu"];

/// Whether a policy or ring list of this name is to be loaded, not only included.
pub fn is_loadable(name: &str) -> bool {
    name != "common_device"
        && LOADABLE
            .iter()
            .any(|ending| name.strip_suffix(ending).is_some_and(|d| !d.is_empty()))
}

pub(super) fn policy_path(name: &str, arch: Arch) -> String {
    format!("{arch}/{name}.policy")
}

/// Where each filter of a policy stands: by the call's number, as long as its rule's filters.
pub type Places = BTreeMap<u32, Vec<Place>>;

/// Reads a whole policy.
pub(super) fn policy(
    name: &str,
    arch: Arch,
    source: &dyn Source,
) -> Result<(Policy, Places), PolicyError> {
    let path = policy_path(name, arch);
    check_loadable(name, &source.label(&path))?;
    file(&path, arch, source)
}

/// As [`policy`], whatever the file's name is.
pub(super) fn file(
    path: &str,
    arch: Arch,
    source: &dyn Source,
) -> Result<(Policy, Places), PolicyError> {
    let mut merged = Merged {
        policy: Policy {
            arch,
            default: Action::Trap,
            rules: BTreeMap::new(),
            frequencies: BTreeMap::new(),
        },
        default: None,
        places: BTreeMap::new(),
    };
    walk(path, arch, source, &mut |file, statement| {
        merged.add(file, statement)
    })?;
    Ok((merged.policy, merged.places))
}

/// A policy in the making, and where what it says was said: for the errors about contradictions.
struct Merged {
    policy: Policy,
    default: Option<Place>,
    places: Places,
}

impl Merged {
    fn add(&mut self, file: &str, statement: Statement) -> Result<(), SyntaxError> {
        let place = |at| Place::new(file, at);
        match statement {
            Statement::Default { action, at } => self.set_default(action, at, place(at)),
            Statement::Rule { name, filter, at } => {
                let number = self.number(&name, at)?;
                let rule = self.policy.rules.entry(number).or_insert(Rule {
                    name,
                    filters: Vec::new(),
                });
                merge(
                    rule,
                    filter,
                    place(at),
                    self.places.entry(number).or_default(),
                )
            }
            Statement::Frequency { name, count, at } => {
                let number = self.number(&name, at)?;
                let frequency = self.policy.frequencies.entry(number).or_default();
                *frequency = frequency.saturating_add(count);
                Ok(())
            }
            // walk() follows them.
            Statement::Include { .. } => Ok(()),
        }
    }

    fn number(&self, name: &str, at: Position) -> Result<u32, SyntaxError> {
        let arch = self.policy.arch;
        arch.syscall_number(name)
            .ok_or_else(|| SyntaxError::new(at, no_call(name, arch)))
    }

    fn set_default(
        &mut self,
        action: Action,
        at: Position,
        place: Place,
    ) -> Result<(), SyntaxError> {
        match &self.default {
            Some(first) if self.policy.default != action => Err(SyntaxError::new(
                at,
                format!("there is another `@default`, at {first}"),
            )),
            _ => {
                self.policy.default = action;
                self.default = Some(place);
                Ok(())
            }
        }
    }
}

/// What is wrong with a name that no call has, and what may have been meant.
fn no_call(name: &str, arch: Arch) -> String {
    let mut others = Arch::ALL.into_iter();
    let elsewhere = others.find(|other| other.syscall_number(name).is_some());
    match (elsewhere, nearest(name, arch.syscall_names())) {
        (Some(other), _) => {
            format!("`{name}` is no system call of {arch}, but of {other}: is the file for that?")
        }
        (None, Some(meant)) => {
            format!("`{name}` is no system call of {arch}: did you mean `{meant}`?")
        }
        (None, None) => format!("`{name}` is no system call of {arch}"),
    }
}

/// Refuses a part under its name.
pub(crate) fn check_loadable(name: &str, file: &str) -> Result<(), PolicyError> {
    let start = Position { line: 1, column: 1 };
    match is_loadable(name) {
        true => Ok(()),
        false => Err(PolicyError::new(
            file,
            start,
            format!(
                "`{name}` is a part, or no policy: only *_device, *_device_vhost_user and \
                     *_device_vvu are loaded"
            ),
        )),
    }
}

/// Where a statement stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as [`Source::label`] calls it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

impl Place {
    pub(crate) fn new(file: &str, at: Position) -> Self {
        let Position { line, column } = at;
        Self {
            file: file.to_owned(),
            line,
            column,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Appends a filter to a call's others. Filters are tried in order, so that of rules that allow,
/// any may; what can never be reached, or says two things of one condition, is a contradiction.
fn merge(
    rule: &mut Rule,
    filter: Filter,
    place: Place,
    places: &mut Vec<Place>,
) -> Result<(), SyntaxError> {
    let at = Position {
        line: place.line,
        column: place.column,
    };
    let fail = |why: String| SyntaxError::new(at, format!("`{}` {why}", rule.name));
    let before = rule.filters.iter().zip(&*places).find(|(before, _)| {
        before.condition.is_none()
            || (before.condition == filter.condition && before.action != filter.action)
    });
    if let Some((before, before_place)) = before {
        let what = match before.condition {
            None => "is decided without a condition already",
            Some(_) => "has another action for this condition",
        };
        return Err(fail(format!("{what}, at {before_place}")));
    }
    if rule.filters.len() >= FILTERS_MAX {
        return Err(fail(format!("has more than {FILTERS_MAX} filters")));
    }
    rule.filters.push(filter);
    places.push(place);
    Ok(())
}

/// Visits the statements of a file and of all that it includes, in order. The visitor also gets
/// the file's label; its error is placed there.
pub(crate) fn walk(
    path: &str,
    arch: Arch,
    source: &dyn Source,
    visit: &mut dyn FnMut(&str, Statement) -> Result<(), SyntaxError>,
) -> Result<(), PolicyError> {
    let label = source.label(path);
    let start = Position { line: 1, column: 1 };
    let text = source
        .read(path)
        .map_err(|error| PolicyError::new(&label, start, error.to_string()))?;
    Walk {
        arch,
        source,
        visit,
        includes: 0,
    }
    .file(&mut vec![path.to_owned()], Content::Policy, &text)
}

struct Walk<'a> {
    arch: Arch,
    source: &'a dyn Source,
    visit: &'a mut dyn FnMut(&str, Statement) -> Result<(), SyntaxError>,
    /// So far.
    includes: usize,
}

impl Walk<'_> {
    /// `open` are the files that we are in the midst of, this one last.
    fn file(
        &mut self,
        open: &mut Vec<String>,
        content: Content,
        text: &str,
    ) -> Result<(), PolicyError> {
        let path = open.last().cloned().unwrap_or_default();
        let label = self.source.label(&path);
        let mut deeper = Ok(());
        let read = parse(text, content, self.arch, &mut |statement| match statement {
            Statement::Include {
                path: include,
                content,
                at,
            } => {
                let (include, text) = self.included(open, &include, at)?;
                open.push(include);
                let result = self.file(open, content, &text);
                open.pop();
                result.map_err(|error| {
                    deeper = Err(error);
                    SyntaxError::new(at, String::new())
                })
            }
            other => (self.visit)(&label, other),
        });
        // What is wrong in an included file is placed there.
        deeper?;
        read.map_err(|error| PolicyError::new(&label, error.at, error.message))
    }

    /// The name and text of a file that the last of `open` includes.
    fn included(
        &mut self,
        open: &[String],
        include: &str,
        at: Position,
    ) -> Result<(String, String), SyntaxError> {
        let fail =
            |path: &str, why: &str| SyntaxError::new(at, format!("cannot include {path}: {why}"));
        let from = open.last().map_or("", String::as_str);
        let path = resolve(from, include)
            .ok_or_else(|| fail(include, "it is outside the directory of the policies"))?;
        if open.contains(&path) {
            let circle = open.join(" -> ");
            return Err(fail(
                &path,
                &format!("it includes itself ({circle} -> {path})"),
            ));
        }
        if open.len() >= INCLUDE_DEPTH_MAX {
            return Err(fail(
                &path,
                &format!("more than {INCLUDE_DEPTH_MAX} files deep"),
            ));
        }
        self.includes += 1;
        if self.includes > INCLUDES_MAX {
            let why = format!("more than {INCLUDES_MAX} inclusions");
            return Err(fail(&path, &why));
        }
        match self.source.read(&path) {
            Ok(text) => Ok((path, text)),
            Err(error) => Err(fail(&self.source.label(&path), &error.to_string())),
        }
    }
}

/// An include path seen from the file that it stands in, without `.` and `..`, so that a file has
/// one name; `None` when it leads out of where files are looked for.
fn resolve(from: &str, include: &str) -> Option<String> {
    if include.starts_with('/') {
        return Some(include.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    // The file itself: what is left is its directory.
    parts.pop();
    for part in include.split('/') {
        match part {
            "." | "" => {}
            ".." => _ = parts.pop().filter(|directory| !directory.is_empty())?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
