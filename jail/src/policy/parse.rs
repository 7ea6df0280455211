//! Makes statements of tokens. Grammar of minijail's own parser (`tools/parser.py`); what of it has
//! no use in a device's process, it refuses with the reason.

use super::token::{Kind, Line, Position, SyntaxError, Token, lines};
use super::{Action, Arch, Atom, Clause, Filter, Operator, constant};

/// One thing that a file says. A line with groups says several.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// `@include ./file` or `@frequency ./file`
    Include {
        path: String,
        content: Content,
        at: Position,
    },
    /// `@default kill-process`
    Default { action: Action, at: Position },
    /// `name: …`
    Rule {
        name: String,
        filter: Filter,
        at: Position,
    },
    /// `name: 27`, in a file of frequencies.
    Frequency {
        name: String,
        count: u64,
        at: Position,
    },
}

/// The two kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Rules and directives.
    Policy,
    /// How often calls are made.
    Frequencies,
}

/// Greatest number of names or of filters in one pair of braces: no group of either needs more,
/// and a line's statements are as many as one times the other.
const GROUP_MAX: usize = 256;

/// What `[arch=…]` may name: the architectures that minijail knows. Another is a slip, which would
/// take a rule away in silence.
const ARCHES: [&str; 14] = [
    "x86_64", "aarch64", "arm64", "arm", "x86", "i386", "mips", "mips64", "ppc", "ppc64",
    "ppc64le", "riscv64", "s390", "s390x",
];

/// Parses a file, line by line. Names, constants and the width of numbers are those of `arch`; what
/// is of another architecture by `[arch=…]` is left out.
pub(crate) fn parse(
    text: &str,
    content: Content,
    arch: Arch,
    visit: &mut dyn FnMut(Statement) -> Result<(), SyntaxError>,
) -> Result<(), SyntaxError> {
    for line in lines(text)? {
        let parser = Parser {
            line: &line,
            next: 0,
            arch,
        };
        for statement in parser.statements(content)? {
            visit(statement)?;
        }
    }
    Ok(())
}

struct Parser<'a> {
    line: &'a Line<'a>,
    next: usize,
    arch: Arch,
}

impl<'a> Parser<'a> {
    fn statements(mut self, content: Content) -> Result<Vec<Statement>, SyntaxError> {
        let at = self.position();
        let statements = match (content, self.peek()) {
            (Content::Frequencies, _) => self.frequency()?,
            (Content::Policy, Some(Kind::Directive(directive))) => {
                self.next += 1;
                vec![self.directive(directive, at)?]
            }
            (Content::Policy, _) => self.rules()?,
        };
        match self.peek() {
            None => Ok(statements),
            Some(_) => Err(self.expected("the end of the line")),
        }
    }

    fn directive(&mut self, directive: &str, at: Position) -> Result<Statement, SyntaxError> {
        match directive {
            "include" => self.file(Content::Policy, at),
            "frequency" => self.file(Content::Frequencies, at),
            "default" => {
                let action_at = self.position();
                let action = self.action()?;
                match action {
                    Action::Trap
                    | Action::KillThread
                    | Action::KillProcess
                    | Action::UserNotify => Ok(Statement::Default { action, at }),
                    Action::Allow | Action::Log | Action::Errno(_) => Err(SyntaxError::new(
                        action_at,
                        "expected a default that does not go on: `trap`, `kill`, \
                         `kill-process`, `kill-thread` or `user-notify`",
                    )),
                }
            }
            "denylist" => Err(SyntaxError::new(
                at,
                "a policy of what is forbidden is not taken: it allows what nobody thought of",
            )),
            _ => Err(SyntaxError::new(
                at,
                "expected `@include`, `@frequency` or `@default`",
            )),
        }
    }

    fn file(&mut self, content: Content, at: Position) -> Result<Statement, SyntaxError> {
        match self.advance() {
            Some(Kind::Path(path)) => Ok(Statement::Include {
                path: path.to_owned(),
                content,
                at,
            }),
            _ => Err(self.expected_before("a path that begins with `./` or `/`")),
        }
    }

    /// `name: 27`
    fn frequency(&mut self) -> Result<Vec<Statement>, SyntaxError> {
        let name = self.name()?;
        self.symbol(":", "`:` after the name")?;
        let count = match self.peek() {
            Some(Kind::Number(text)) if !text.starts_with('-') => {
                let at = self.position();
                self.next += 1;
                number(text, 64).ok_or_else(|| {
                    SyntaxError::new(at, format!("`{text}` is no number of at most 64 bits"))
                })?
            }
            _ => return Err(self.expected("how often it is called")),
        };
        let statement = |(name, at)| Statement::Frequency { name, count, at };
        Ok(name.into_iter().map(statement).collect())
    }

    /// Names and filters: each name gets each filter, in order.
    fn rules(&mut self) -> Result<Vec<Statement>, SyntaxError> {
        let names: Vec<_> = match self.peek() {
            Some(Kind::Symbol("{")) => self.group(Self::name)?.into_iter().flatten().collect(),
            _ => self.name()?.into_iter().collect(),
        };
        self.symbol(":", "`:` after the name")?;
        let filters = match self.peek() {
            Some(Kind::Symbol("{")) => self.group(Self::filter)?,
            _ => vec![self.filter()?],
        };
        let mut rules = Vec::new();
        for (name, at) in names {
            rules.extend(filters.iter().map(|filter| Statement::Rule {
                name: name.clone(),
                filter: filter.clone(),
                at,
            }));
        }
        Ok(rules)
    }

    /// `{a, b}`
    fn group<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<Vec<T>, SyntaxError> {
        let at = self.position();
        self.symbol("{", "`{`")?;
        let mut group = vec![one(self)?];
        while self.take(",") {
            group.push(one(self)?);
        }
        self.symbol("}", "`,` or `}`")?;
        match group.len() > GROUP_MAX {
            true => Err(SyntaxError::new(
                at,
                format!(
                    "expected at most {GROUP_MAX} in a group, found {}",
                    group.len()
                ),
            )),
            false => Ok(group),
        }
    }

    /// A name and its place; `None` when it is for other architectures.
    fn name(&mut self) -> Result<Option<(String, Position)>, SyntaxError> {
        let at = self.position();
        let name = match self.advance() {
            Some(Kind::Word(name)) => name.to_owned(),
            _ => return Err(self.expected_before("a name")),
        };
        match self.peek() {
            Some(Kind::Symbol("[")) => Ok(self.is_for_us()?.then_some((name, at))),
            // minijail's `name@namespace`.
            Some(Kind::Directive(_)) => Err(SyntaxError::new(
                at,
                "named groups of calls are not known here: expected `{a, b}`",
            )),
            _ => Ok(Some((name, at))),
        }
    }

    /// `[arch=x86_64,arm]`
    fn is_for_us(&mut self) -> Result<bool, SyntaxError> {
        self.symbol("[", "`[`")?;
        if self.advance() != Some(Kind::Word("arch")) {
            return Err(self.expected_before("`arch`"));
        }
        self.symbol("=", "`=`")?;
        let mut ours = false;
        loop {
            match self.advance() {
                Some(Kind::Word(name)) if ARCHES.contains(&name) => {
                    ours |= name == self.arch.name() || self.arch.other_name() == Some(name);
                }
                _ => return Err(self.expected_before("an architecture, such as `x86_64`")),
            }
            if !self.take(",") {
                break;
            }
        }
        self.symbol("]", "`,` or `]`")?;
        Ok(ours)
    }

    fn filter(&mut self) -> Result<Filter, SyntaxError> {
        if self.peek_argument().is_none() {
            return Ok(Filter {
                condition: None,
                action: self.action()?,
            });
        }
        let condition = Some(self.condition()?);
        let action = match self.take(";") {
            true => self.action()?,
            false => Action::Allow,
        };
        Ok(Filter { condition, action })
    }

    fn condition(&mut self) -> Result<Vec<Clause>, SyntaxError> {
        let mut clauses = vec![self.clause()?];
        while self.take("||") {
            clauses.push(self.clause()?);
        }
        Ok(clauses)
    }

    fn clause(&mut self) -> Result<Clause, SyntaxError> {
        let mut atoms = vec![self.atom()?];
        while self.take("&&") {
            atoms.push(self.atom()?);
        }
        Ok(atoms)
    }

    fn atom(&mut self) -> Result<Atom, SyntaxError> {
        let argument = self
            .peek_argument()
            .ok_or_else(|| self.expected("`arg0` to `arg5`"))?;
        self.next += 1;
        let operator = match self.advance() {
            Some(Kind::Symbol("==")) => Operator::Equal,
            Some(Kind::Symbol("!=")) => Operator::NotEqual,
            Some(Kind::Symbol("<")) => Operator::Less,
            Some(Kind::Symbol("<=")) => Operator::LessOrEqual,
            Some(Kind::Symbol(">")) => Operator::Greater,
            Some(Kind::Symbol(">=")) => Operator::GreaterOrEqual,
            Some(Kind::Symbol("&")) => Operator::AnyBit,
            Some(Kind::Word("in")) => Operator::OnlyBits,
            _ => {
                return Err(self.expected_before(
                    "a comparison: `==`, `!=`, `<`, `<=`, `>`, `>=`, `&` or `in`",
                ));
            }
        };
        Ok(Atom {
            argument,
            operator,
            value: self.value()?,
        })
    }

    /// `arg` and a digit up to 5.
    fn peek_argument(&self) -> Option<u8> {
        match self.peek()? {
            Kind::Word(word) => {
                let index = word.strip_prefix("arg")?.parse().ok()?;
                (index < 6).then_some(index)
            }
            _ => None,
        }
    }

    /// Constants joined by `|`.
    fn value(&mut self) -> Result<u64, SyntaxError> {
        let mut value = self.constant()?;
        while self.take("|") {
            value |= self.constant()?;
        }
        Ok(value)
    }

    /// A number, a name or a value in parentheses, with or without one `~` before it.
    fn constant(&mut self) -> Result<u64, SyntaxError> {
        let complement = self.take("~");
        let value = if self.take("(") {
            let value = self.value()?;
            self.symbol(")", "`)`")?;
            value
        } else {
            self.single_constant()?
        };
        Ok(if complement {
            !value & self.arch.word_mask()
        } else {
            value
        })
    }

    fn single_constant(&mut self) -> Result<u64, SyntaxError> {
        let at = self.position();
        match self.advance() {
            Some(Kind::Number(text)) => self.number(text, at),
            Some(Kind::Word(name)) => constant(name, self.arch).ok_or_else(|| {
                SyntaxError::new(at, format!("`{name}` is no constant of {}", self.arch))
            }),
            _ => Err(self.expected_before("a number or the name of a constant")),
        }
    }

    fn number(&self, text: &str, at: Position) -> Result<u64, SyntaxError> {
        let bits = self.arch.bits();
        number(text, bits).ok_or_else(|| {
            SyntaxError::new(at, format!("`{text}` is no number of at most {bits} bits"))
        })
    }

    fn action(&mut self) -> Result<Action, SyntaxError> {
        const EXPECTED: &str = "an action (`1`, `allow`, `return ERRNO`, `trap`, `log`, `kill`, \
                                `kill-process`, `kill-thread`, `user-notify`) or a condition on \
                                `arg0` to `arg5`";
        let at = self.position();
        match self.advance() {
            Some(Kind::Number("1") | Kind::Word("allow")) => Ok(Action::Allow),
            Some(Kind::Word("return")) => self.errno(),
            Some(Kind::Word("trap")) => Ok(Action::Trap),
            Some(Kind::Word("log")) => Ok(Action::Log),
            // One thread is the process here.
            Some(Kind::Word("kill" | "kill-process")) => Ok(Action::KillProcess),
            Some(Kind::Word("kill-thread")) => Ok(Action::KillThread),
            Some(Kind::Word("user-notify")) => Ok(Action::UserNotify),
            Some(Kind::Word("trace")) => Err(SyntaxError::new(
                at,
                "`trace` is not taken: it is for a debugger that is attached, and without one \
                 the call fails with ENOSYS",
            )),
            _ => Err(self.expected_before(EXPECTED)),
        }
    }

    fn errno(&mut self) -> Result<Action, SyntaxError> {
        let at = self.position();
        let value = self.single_constant()?;
        let errno = u16::try_from(value)
            .ok()
            .filter(|errno| *errno <= Action::ERRNO_MAX);
        errno.map(Action::Errno).ok_or_else(|| {
            SyntaxError::new(
                at,
                format!("{value} is no errno (at most {})", Action::ERRNO_MAX),
            )
        })
    }

    fn peek(&self) -> Option<Kind<'a>> {
        self.line.tokens.get(self.next).map(|token| token.kind)
    }

    fn advance(&mut self) -> Option<Kind<'a>> {
        let kind = self.peek();
        self.next += 1;
        kind
    }

    /// Takes the symbol if it is the next token.
    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Kind::Symbol(next)) if next == symbol);
        self.next += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str, expected: &str) -> Result<(), SyntaxError> {
        if self.take(symbol) {
            Ok(())
        } else {
            Err(self.expected(expected))
        }
    }

    fn position(&self) -> Position {
        self.token(self.next)
            .map_or(self.line.end, |token| token.at)
    }

    fn token(&self, index: usize) -> Option<&Token<'a>> {
        self.line.tokens.get(index)
    }

    fn expected(&self, what: &str) -> SyntaxError {
        let found = self
            .peek()
            .map_or_else(|| "the line ends".to_owned(), |k| format!("found {k}"));
        SyntaxError::new(self.position(), format!("expected {what}, {found}"))
    }

    /// As [`Self::expected`], of the token that was just taken.
    fn expected_before(&mut self, what: &str) -> SyntaxError {
        self.next -= 1;
        self.expected(what)
    }
}

/// As C's `strtol(text, NULL, 0)`, so that a leading 0 means octal; a negative number is taken
/// modulo the word. `None` when it is no number, or has more bits.
fn number(text: &str, bits: u32) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (digits, base) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // from_str_radix() would take another sign.
    if !digits.starts_with(|c: char| c.is_digit(base)) {
        return None;
    }
    let value = u64::from_str_radix(digits, base).ok()?;
    let mask = u64::MAX >> (64 - bits);
    match negative {
        false => (value <= mask).then_some(value),
        true => (value <= mask / 2 + 1).then_some(value.wrapping_neg() & mask),
    }
}
