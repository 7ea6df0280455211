//! Policy to BPF: architecture check, search by number, one body for each different rule.
//!
//! The search is a binary tree over ranges of numbers that have the same verdict, halved by weight:
//! calls that the `@frequency` files say are common are near its root, and without such files all
//! calls are equally deep. Its order matters most for calls with conditions: since 5.11 the kernel
//! runs a filter once per number at load time and remembers the calls that it allows without
//! looking at an argument.

use std::collections::BTreeMap;

use super::assemble::{Assembler, Label};
use super::bpf::{
    self, Program, ProgramError, TEST_ANY_BIT, TEST_EQUAL, TEST_GREATER, TEST_GREATER_OR_EQUAL,
};
use super::{Action, Atom, Clause, Filter, Operator, Policy};

/// Compiles a policy whose includes are followed.
pub(super) fn compile(policy: &Policy) -> Result<Program, ProgramError> {
    let mut compiler = Compiler {
        code: Assembler::default(),
        returns: BTreeMap::new(),
        wide: policy.arch.bits() == 64,
    };
    compiler.prologue(policy);
    let default = compiler.ret(policy.default);
    // Rules that say the same, such as those of one `{a, b}: …`, share their body.
    let mut bodies: BTreeMap<&[Filter], Label> = BTreeMap::new();
    let mut labels = Vec::new();
    for (number, rule) in &policy.rules {
        let label = match &rule.filters[..] {
            [] => default,
            [
                Filter {
                    condition: None,
                    action,
                },
            ] => compiler.ret(*action),
            filters => *bodies
                .entry(filters)
                .or_insert_with(|| compiler.code.label()),
        };
        labels.push((*number, label));
    }
    let segments = compiler.segments(policy, &labels, default);
    compiler.search(&segments);
    for (filters, label) in bodies {
        compiler.code.bind(label);
        compiler.body(filters, default);
    }
    compiler.epilogue();
    compiler.code.finish().map(Program::new)
}

/// Numbers from `first` up to the next segment's, all with one verdict.
struct Segment {
    first: u32,
    label: Label,
    weight: u64,
}

/// Where to halve segments (at least two), so that both halves are about as heavy; of several such
/// places, the one nearest the middle.
fn balance(segments: &[Segment]) -> usize {
    let weigh = |segments: &[Segment]| {
        segments
            .iter()
            .fold(0_u64, |sum, segment| sum.saturating_add(segment.weight))
    };
    let all = weigh(segments);
    let mut below = 0_u64;
    let mut best = (u64::MAX, usize::MAX, 1);
    for (segment, split) in segments.iter().zip(1..segments.len()) {
        below = below.saturating_add(segment.weight);
        let difference = below.abs_diff(all.saturating_sub(below));
        best = best.min((difference, split.abs_diff(segments.len() / 2), split));
    }
    best.2
}

struct Compiler {
    code: Assembler,
    /// Where each verdict is returned: one instruction each, at the end.
    returns: BTreeMap<u32, Label>,
    /// Arguments have two words.
    wide: bool,
}

impl Compiler {
    fn ret(&mut self, action: Action) -> Label {
        let code = &mut self.code;
        *self
            .returns
            .entry(bpf::encode(action))
            .or_insert_with(|| code.label())
    }

    /// Calls of another architecture have other numbers: nothing that a rule says is about them.
    fn prologue(&mut self, policy: &Policy) {
        let kill = self.ret(Action::KillProcess);
        let ours = self.code.label();
        self.code.load(bpf::ARCH);
        self.code
            .branch(TEST_EQUAL, policy.arch.audit(), ours, kill);
        self.code.bind(ours);
        self.code.load(bpf::NUMBER);
    }

    /// All numbers from 0 on, ascending; neighbours differ in their label. The numbers of x32,
    /// which comes under x86_64's name, are the last.
    fn segments(
        &mut self,
        policy: &Policy,
        labels: &[(u32, Label)],
        default: Label,
    ) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut add = |first, label, weight: u64| {
            // What would follow a call is empty when its neighbour has a rule too.
            segments.pop_if(|last| last.first == first);
            match segments.last_mut() {
                Some(last) if last.label == label => {
                    last.weight = last.weight.saturating_add(weight);
                }
                _ => segments.push(Segment {
                    first,
                    label,
                    weight,
                }),
            }
        };
        let foreign = policy.arch.foreign_numbers();
        add(0, default, 0);
        for (number, label) in labels {
            if foreign.is_some_and(|first| *number >= first) {
                break;
            }
            let frequency = policy.frequencies.get(number).copied();
            add(*number, *label, frequency.unwrap_or(1));
            if let Some(next) = number.checked_add(1) {
                add(next, default, 0);
            }
        }
        if let Some(first) = foreign {
            let kill = self.ret(Action::KillProcess);
            add(first, kill, 0);
        }
        segments
    }

    /// The number is loaded; goes to its segment's label.
    fn search(&mut self, segments: &[Segment]) {
        if let [segment] = segments {
            self.jump(segment.label);
            return;
        }
        let (low, high) = segments.split_at(balance(segments));
        let mut place = |half: &[Segment]| match half {
            [segment] => segment.label,
            _ => self.code.label(),
        };
        let (below, above) = (place(low), place(high));
        self.code
            .branch(TEST_GREATER_OR_EQUAL, high[0].first, above, below);
        for (half, label) in [(low, below), (high, above)] {
            if half.len() > 1 {
                self.code.bind(label);
                self.search(half);
            }
        }
    }

    /// A test that goes to one place either way.
    fn jump(&mut self, to: Label) {
        self.code.branch(TEST_EQUAL, 0, to, to);
    }

    /// Filters in order; when none holds, the default.
    fn body(&mut self, filters: &[Filter], default: Label) {
        for filter in filters {
            let action = self.ret(filter.action);
            match &filter.condition {
                Some(clauses) => self.condition(clauses, action),
                None => {
                    self.jump(action);
                    return;
                }
            }
        }
        self.jump(default);
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

    /// Compares 64 bits by two words: the high one decides unless it is equal. Where arguments
    /// have 32 bits, there is but the low one.
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
        if self.wide {
            let low = self.code.label();
            self.load_high(argument);
            self.code.branch(TEST_EQUAL, high(value), low, no);
            self.code.bind(low);
        }
        self.load_low(argument);
        self.code.branch(TEST_EQUAL, low_word(value), yes, no);
    }

    fn greater(&mut self, argument: u8, value: u64, test: u16, yes: Label, no: Label) {
        if self.wide {
            let (not_greater, low) = (self.code.label(), self.code.label());
            self.load_high(argument);
            self.code
                .branch(TEST_GREATER, high(value), yes, not_greater);
            self.code.bind(not_greater);
            self.code.branch(TEST_EQUAL, high(value), low, no);
            self.code.bind(low);
        }
        self.load_low(argument);
        self.code.branch(test, low_word(value), yes, no);
    }

    /// A word of which no bit is asked for is not looked at.
    fn any_bit(&mut self, argument: u8, value: u64, yes: Label, no: Label) {
        if self.wide && high(value) != 0 {
            let low = self.code.label();
            self.load_high(argument);
            self.code.branch(TEST_ANY_BIT, high(value), yes, low);
            self.code.bind(low);
        }
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
