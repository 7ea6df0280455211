//! Follows `@include` and merges the rules of all parts.

use std::collections::BTreeMap;

use super::parse::{Statement, parse};
use super::token::{Position, SyntaxError};
use super::{Action, Arch, Filter, Policy, Rule};
use crate::source::Source;

/// Files that include each other, one below the other; minijail's own bound.
pub const INCLUDE_DEPTH_MAX: usize = 10;

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

/// Reads a whole policy.
pub(super) fn policy(name: &str, arch: Arch, source: &dyn Source) -> Result<Policy, PolicyError> {
    let path = policy_path(name, arch);
    check_loadable(name, &source.label(&path))?;
    let mut policy = Policy {
        arch,
        default: Action::Trap,
        rules: BTreeMap::new(),
    };
    let mut places = BTreeMap::new();
    walk(
        &path,
        arch,
        source,
        &mut |file, statement| match statement {
            Statement::Default(action) => {
                policy.default = action;
                Ok(())
            }
            Statement::Rule { name, filter, at } => {
                let place = Place {
                    file: file.to_owned(),
                    at,
                };
                let number = arch.syscall_number(&name).ok_or_else(|| {
                    SyntaxError::new(at, format!("`{name}` is no system call of {arch}"))
                })?;
                let places = places.entry(number).or_insert_with(Vec::new);
                let rule = policy.rules.entry(number);
                merge(
                    rule.or_insert(Rule {
                        name,
                        filters: Vec::new(),
                    }),
                    filter,
                    place,
                    places,
                )
            }
            Statement::Include { .. } => Ok(()),
        },
    )?;
    Ok(policy)
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

/// Where a filter stands, for the error about the next one.
struct Place {
    file: String,
    at: Position,
}

/// Appends a filter to a call's others. Filters are tried in order, so that of rules that allow,
/// any may; what can never be reached, or says two things of one condition, is a contradiction.
fn merge(
    rule: &mut Rule,
    filter: Filter,
    place: Place,
    places: &mut Vec<Place>,
) -> Result<(), SyntaxError> {
    let before = rule.filters.iter().zip(&*places).find(|(before, _)| {
        before.condition.is_none()
            || (before.condition == filter.condition && before.action != filter.action)
    });
    if let Some((
        before,
        Place {
            file,
            at: Position { line, column },
        },
    )) = before
    {
        let what = match before.condition {
            None => "is decided without a condition already",
            Some(_) => "has another action for this condition",
        };
        return Err(SyntaxError::new(
            place.at,
            format!("`{}` {what}, at {file}:{line}:{column}", rule.name),
        ));
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
    }
    .file(&mut vec![path.to_owned()], &text)
}

struct Walk<'a> {
    arch: Arch,
    source: &'a dyn Source,
    visit: &'a mut dyn FnMut(&str, Statement) -> Result<(), SyntaxError>,
}

impl Walk<'_> {
    /// `open` are the files that we are in the midst of, this one last.
    fn file(&mut self, open: &mut Vec<String>, text: &str) -> Result<(), PolicyError> {
        let path = open.last().cloned().unwrap_or_default();
        let label = self.source.label(&path);
        let place = |error: SyntaxError| PolicyError::new(&label, error.at, error.message);
        for statement in parse(text, self.arch).map_err(place)? {
            match statement {
                Statement::Include { path: include, at } => {
                    let include = resolve(&path, &include);
                    let text = self.included(open, &include, at).map_err(place)?;
                    open.push(include);
                    self.file(open, &text)?;
                    open.pop();
                }
                other => (self.visit)(&label, other).map_err(place)?,
            }
        }
        Ok(())
    }

    fn included(&self, open: &[String], path: &str, at: Position) -> Result<String, SyntaxError> {
        let fail = |why: String| SyntaxError::new(at, format!("cannot include {path}: {why}"));
        if open.iter().any(|open| open == path) {
            return Err(fail(format!(
                "it includes itself ({} -> {path})",
                open.join(" -> ")
            )));
        }
        if open.len() >= INCLUDE_DEPTH_MAX {
            return Err(fail(format!("more than {INCLUDE_DEPTH_MAX} files deep")));
        }
        self.source
            .read(path)
            .map_err(|error| fail(error.to_string()))
    }
}

/// An include path seen from the file that it stands in.
fn resolve(from: &str, include: &str) -> String {
    let Some(relative) = include.strip_prefix("./") else {
        return include.to_owned();
    };
    match from.rsplit_once('/') {
        Some((directory, _)) => format!("{directory}/{relative}"),
        None => relative.to_owned(),
    }
}
