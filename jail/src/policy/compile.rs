//! Policy to BPF: architecture check, balanced search by number, one body a rule.
//!
//! The order of the search says little about speed: since 5.11 the kernel runs a filter once per
//! number at load time and remembers the calls that it allows without looking at an argument.

use std::collections::BTreeMap;

use super::assemble::{Assembler, Label};
use super::bpf::{
    self, Program, ProgramError, TEST_ANY_BIT, TEST_EQUAL, TEST_GREATER, TEST_GREATER_OR_EQUAL,
};
use super::{Action, Atom, Clause, Filter, Operator, Policy};

/// Compiles a policy whose includes are followed.
pub(super) fn compile(policy: &Policy) -> Result<Program, ProgramError> {
    let mut compiler = Compiler::default();
    compiler.prologue(policy);
    let rules: Vec<_> = policy
        .rules
        .iter()
        .map(|(number, rule)| (*number, rule))
        .collect();
    let labels = rules.iter().map(|(number, rule)| {
        let label = match &rule.filters[..] {
            [
                Filter {
                    condition: None,
                    action,
                },
            ] => compiler.ret(*action),
            _ => compiler.code.label(),
        };
        (*number, label)
    });
    let labels: Vec<_> = labels.collect();
    let default = compiler.ret(policy.default);
    compiler.search(&labels, default);
    for ((_, rule), (_, label)) in rules.iter().zip(&labels) {
        if rule.filters.iter().any(|filter| filter.condition.is_some()) {
            compiler.code.bind(*label);
            compiler.body(&rule.filters, default);
        }
    }
    compiler.epilogue();
    compiler.code.finish().map(Program::new)
}

#[derive(Default)]
struct Compiler {
    code: Assembler,
    /// Where each verdict is returned: one instruction each, at the end.
    returns: BTreeMap<u32, Label>,
}

impl Compiler {
    fn ret(&mut self, action: Action) -> Label {
        let code = &mut self.code;
        *self
            .returns
            .entry(bpf::encode(action))
            .or_insert_with(|| code.label())
    }

    /// Calls of another architecture, or of x32, have other numbers: nothing that a rule says is
    /// about them.
    fn prologue(&mut self, policy: &Policy) {
        let kill = self.ret(Action::KillProcess);
        let ours = self.code.label();
        self.code.load(bpf::ARCH);
        self.code
            .branch(TEST_EQUAL, policy.arch.audit(), ours, kill);
        self.code.bind(ours);
        self.code.load(bpf::NUMBER);
        if let Some(first) = policy.arch.foreign_numbers() {
            let native = self.code.label();
            self.code.branch(TEST_GREATER_OR_EQUAL, first, kill, native);
            self.code.bind(native);
        }
    }

    /// The number is loaded; goes to its label, or to `default`.
    fn search(&mut self, labels: &[(u32, Label)], default: Label) {
        match labels {
            [] => {
                // Only in a policy without rules; a test that jumps to one place either way.
                self.code.branch(TEST_EQUAL, 0, default, default);
            }
            [(number, label)] => self.code.branch(TEST_EQUAL, *number, *label, default),
            _ => {
                let (low, high) = labels.split_at(labels.len() / 2);
                let (below, above) = (self.code.label(), self.code.label());
                self.code
                    .branch(TEST_GREATER_OR_EQUAL, high[0].0, above, below);
                self.code.bind(below);
                self.search(low, default);
                self.code.bind(above);
                self.search(high, default);
            }
        }
    }

    /// Filters in order; when none holds, the default.
    fn body(&mut self, filters: &[Filter], default: Label) {
        for filter in filters {
            let action = self.ret(filter.action);
            match &filter.condition {
                Some(clauses) => self.condition(clauses, action),
                None => {
                    self.code.branch(TEST_EQUAL, 0, action, action);
                    return;
                }
            }
        }
        self.code.branch(TEST_EQUAL, 0, default, default);
    }

    /// Goes to `holds`, or falls through.
    fn condition(&mut self, clauses: &[Clause], holds: Label) {
        for clause in clauses {
            let fails = self.code.label();
            for (index, atom) in clause.iter().enumerate() {
                let last = index + 1 == clause.len();
                let next = if last { holds } else { self.code.label() };
                self.atom(atom, next, fails);
                if !last {
                    self.code.bind(next);
                }
            }
            self.code.bind(fails);
        }
    }

    /// Compares 64 bits by two words: the high one decides unless it is equal.
    fn atom(&mut self, atom: &Atom, yes: Label, no: Label) {
        use Operator::{
            AnyBit, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual, OnlyBits,
        };
        let Atom {
            argument,
            operator,
            value,
        } = *atom;
        match operator {
            Equal => self.equal(argument, value, yes, no),
            NotEqual => self.equal(argument, value, no, yes),
            Greater => self.greater(argument, value, TEST_GREATER, yes, no),
            GreaterOrEqual => self.greater(argument, value, TEST_GREATER_OR_EQUAL, yes, no),
            LessOrEqual => self.greater(argument, value, TEST_GREATER, no, yes),
            Less => self.greater(argument, value, TEST_GREATER_OR_EQUAL, no, yes),
            AnyBit => self.any_bit(argument, value, yes, no),
            OnlyBits => self.any_bit(argument, !value, no, yes),
        }
    }

    fn equal(&mut self, argument: u8, value: u64, yes: Label, no: Label) {
        let low = self.code.label();
        self.load_high(argument);
        self.code.branch(TEST_EQUAL, high(value), low, no);
        self.code.bind(low);
        self.load_low(argument);
        self.code.branch(TEST_EQUAL, low_word(value), yes, no);
    }

    fn greater(&mut self, argument: u8, value: u64, test: u16, yes: Label, no: Label) {
        let (not_greater, low) = (self.code.label(), self.code.label());
        self.load_high(argument);
        self.code
            .branch(TEST_GREATER, high(value), yes, not_greater);
        self.code.bind(not_greater);
        self.code.branch(TEST_EQUAL, high(value), low, no);
        self.code.bind(low);
        self.load_low(argument);
        self.code.branch(test, low_word(value), yes, no);
    }

    fn any_bit(&mut self, argument: u8, value: u64, yes: Label, no: Label) {
        let low = self.code.label();
        self.load_high(argument);
        self.code.branch(TEST_ANY_BIT, high(value), yes, low);
        self.code.bind(low);
        self.load_low(argument);
        self.code.branch(TEST_ANY_BIT, low_word(value), yes, no);
    }

    fn load_low(&mut self, argument: u8) {
        self.code.load(bpf::argument(argument).0);
    }

    fn load_high(&mut self, argument: u8) {
        self.code.load(bpf::argument(argument).1);
    }

    fn epilogue(&mut self) {
        for (value, label) in std::mem::take(&mut self.returns) {
            self.code.bind(label);
            self.code.ret(value);
        }
    }
}

fn high(value: u64) -> u32 {
    low_word(value >> 32)
}

fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
