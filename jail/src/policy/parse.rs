//! Makes statements of tokens. Grammar of minijail's own parser (`tools/parser.py`), of which this
//! reads what our files use; what it does not read yet, it refuses by name.

use super::token::{Kind, Line, Position, SyntaxError, Token, lines};
use super::{Action, Arch, Atom, Clause, Filter, Operator, constant};

/// One line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// `@include ./file`
    Include { path: String, at: Position },
    /// `@default kill-process`
    Default(Action),
    /// `name: …`
    Rule {
        name: String,
        filter: Filter,
        at: Position,
    },
}

/// Parses a file. Named constants and the width of numbers are those of `arch`.
pub(crate) fn parse(text: &str, arch: Arch) -> Result<Vec<Statement>, SyntaxError> {
    lines(text)?
        .iter()
        .map(|line| {
            Parser {
                line,
                next: 0,
                arch,
            }
            .statement()
        })
        .collect()
}

struct Parser<'a> {
    line: &'a Line<'a>,
    next: usize,
    arch: Arch,
}

impl<'a> Parser<'a> {
    fn statement(mut self) -> Result<Statement, SyntaxError> {
        let at = self.position();
        let statement = match self.peek() {
            Some(Kind::Directive(directive)) => {
                self.next += 1;
                self.directive(directive, at)?
            }
            Some(Kind::Symbol("{")) => {
                return Err(SyntaxError::new(
                    at,
                    "groups of system calls are not read yet",
                ));
            }
            _ => self.rule(at)?,
        };
        match self.peek() {
            None => Ok(statement),
            Some(_) => Err(self.expected("the end of the line")),
        }
    }

    fn directive(&mut self, directive: &str, at: Position) -> Result<Statement, SyntaxError> {
        match directive {
            "include" => match self.advance() {
                Some(Kind::Path(path)) => Ok(Statement::Include {
                    path: path.to_owned(),
                    at,
                }),
                _ => Err(self.expected_before("a path that begins with `./` or `/`")),
            },
            "default" => {
                let at = self.position();
                let action = self.action()?;
                match action.permits() || matches!(action, Action::Errno(_)) {
                    true => Err(SyntaxError::new(
                        at,
                        "expected a default that ends the caller: `trap`, `kill`, \
                         `kill-process` or `kill-thread`",
                    )),
                    false => Ok(Statement::Default(action)),
                }
            }
            "frequency" => Err(SyntaxError::new(at, "`@frequency` is not read yet")),
            _ => Err(SyntaxError::new(at, "expected `@include` or `@default`")),
        }
    }

    fn rule(&mut self, at: Position) -> Result<Statement, SyntaxError> {
        let name = match self.advance() {
            Some(Kind::Word(name)) => name.to_owned(),
            _ => return Err(self.expected_before("a name")),
        };
        if self.peek() == Some(Kind::Symbol("[")) {
            let at = self.position();
            return Err(SyntaxError::new(at, "`[arch=…]` is not read yet"));
        }
        self.symbol(":", "`:` after the name")?;
        let filter = self.filter()?;
        Ok(Statement::Rule { name, filter, at })
    }

    fn filter(&mut self) -> Result<Filter, SyntaxError> {
        if self.peek() == Some(Kind::Symbol("{")) {
            let at = self.position();
            return Err(SyntaxError::new(at, "groups of filters are not read yet"));
        }
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

    /// `arg` and a digit up to 5; a greater number is an error at its place by `atom`.
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
            Some(Kind::Word(name)) => constant(name)
                .map(|value| value & self.arch.word_mask())
                .ok_or_else(|| SyntaxError::new(at, format!("`{name}` is no constant we know"))),
            _ => Err(self.expected_before("a number or the name of a constant")),
        }
    }

    /// As Python's `int(text, base=0)`, which has no octal by a leading 0; negative numbers are
    /// taken modulo the word.
    fn number(&self, text: &str, at: Position) -> Result<u64, SyntaxError> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let base = |prefix: [&str; 2], base| {
            let digits = digits
                .strip_prefix(prefix[0])
                .or_else(|| digits.strip_prefix(prefix[1]))?;
            Some(u64::from_str_radix(digits, base))
        };
        let leading_zero = digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let parsed = match base(["0x", "0X"], 16).or_else(|| base(["0o", "0O"], 8)) {
            Some(parsed) => parsed.ok(),
            None if leading_zero && digits.starts_with('0') => None,
            None => digits.parse().ok(),
        };
        let mask = self.arch.word_mask();
        match parsed {
            Some(value) if !negative && value <= mask => Ok(value),
            Some(value) if negative && value <= mask / 2 + 1 => Ok(value.wrapping_neg() & mask),
            _ => Err(SyntaxError::new(
                at,
                format!("`{text}` is no number of at most {} bits", self.arch.bits()),
            )),
        }
    }

    fn action(&mut self) -> Result<Action, SyntaxError> {
        const EXPECTED: &str = "an action (`1`, `allow`, `return ERRNO`, `trap`, `log`, `kill`, \
                                `kill-process`, `kill-thread`) or a condition on `arg0` to `arg5`";
        match self.advance() {
            Some(Kind::Number("1") | Kind::Word("allow")) => Ok(Action::Allow),
            Some(Kind::Word("return")) => self.errno(),
            Some(Kind::Word("trap")) => Ok(Action::Trap),
            Some(Kind::Word("log")) => Ok(Action::Log),
            // One thread is the process here.
            Some(Kind::Word("kill" | "kill-process")) => Ok(Action::KillProcess),
            Some(Kind::Word("kill-thread")) => Ok(Action::KillThread),
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
