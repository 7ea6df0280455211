//! What a policy means: rules by system call, and their direct evaluation. No file, no BPF.

use std::collections::BTreeMap;

use super::Arch;

/// What the kernel does with a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Carry it out.
    Allow,
    /// Do not carry it out; the caller gets this errno (at most [`Self::ERRNO_MAX`]).
    Errno(u16),
    /// SIGSYS to the thread: our handler reports it and exits.
    Trap,
    /// Kill the thread.
    KillThread,
    /// Kill the process.
    KillProcess,
    /// Carry it out and log it.
    Log,
    /// Stop the caller until the filter's listener has said what is to be done.
    UserNotify,
}

impl Action {
    /// The kernel's MAX_ERRNO: more would be cut off.
    pub const ERRNO_MAX: u16 = 4095;

    /// Whether the call is carried out, or may be: a listener can let it go on.
    pub fn permits(self) -> bool {
        match self {
            Self::Allow | Self::Log | Self::UserNotify => true,
            Self::Errno(_) | Self::Trap | Self::KillThread | Self::KillProcess => false,
        }
    }
}

/// How an argument is compared; all comparisons are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `&`: any of these bits is set.
    AnyBit,
    /// `in`: no bit but these is set.
    OnlyBits,
}

impl Operator {
    pub(super) fn holds(self, argument: u64, value: u64) -> bool {
        match self {
            Self::Equal => argument == value,
            Self::NotEqual => argument != value,
            Self::Less => argument < value,
            Self::LessOrEqual => argument <= value,
            Self::Greater => argument > value,
            Self::GreaterOrEqual => argument >= value,
            Self::AnyBit => argument & value != 0,
            Self::OnlyBits => argument & !value == 0,
        }
    }
}

/// `arg2 in PROT_READ|PROT_WRITE`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Atom {
    /// 0 to 5.
    pub argument: u8,
    /// The comparison.
    pub operator: Operator,
    /// The constant on its right.
    pub value: u64,
}

/// Atoms joined by `&&`.
pub type Clause = Vec<Atom>;

/// One condition and what follows when it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Clauses joined by `||`; `None` = always.
    pub condition: Option<Vec<Clause>>,
    /// What follows.
    pub action: Action,
}

/// The filters of one system call, in order: the first whose condition holds decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The call's name.
    pub name: String,
    /// An unconditional filter can only be the last.
    pub filters: Vec<Filter>,
}

/// A whole policy, includes followed and rules merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the numbers and constants are of.
    pub arch: Arch,
    /// For calls without a rule, and for those whose rule has no filter that holds.
    pub default: Action,
    /// By system call number.
    pub rules: BTreeMap<u32, Rule>,
    /// How often each call is made, by number, as the `@frequency` files say; a call that none of
    /// them names counts as made once. Says where the search looks first and nothing of verdicts.
    pub frequencies: BTreeMap<u32, u64>,
}

/// What of a policy decided a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The place of the filter in its call's [`Rule::filters`].
    pub filter: usize,
    /// The place of the clause in its condition; 0 where there is no condition.
    pub clause: usize,
    /// What follows.
    pub action: Action,
}

/// A system call as a filter sees it (`struct seccomp_data`, less the instruction pointer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The number.
    pub number: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The argument registers; of a 32-bit call, the low halves count.
    pub args: [u64; 6],
}

impl Policy {
    /// The verdict, straight from the rules. Calls of another architecture or of x32 kill the
    /// process whatever the policy says: its numbers are not theirs.
    pub fn evaluate(&self, call: &Call) -> Action {
        if self.is_foreign(call) {
            return Action::KillProcess;
        }
        let decided = self.decide(call);
        decided.map_or(self.default, |decision| decision.action)
    }

    /// What of the rules gives the verdict; `None` when it is the default, or the architecture.
    pub fn decide(&self, call: &Call) -> Option<Decision> {
        if self.is_foreign(call) {
            return None;
        }
        let args = call.args.map(|argument| argument & self.arch.word_mask());
        let rule = self.rules.get(&call.number)?;
        let mut filters = rule.filters.iter().enumerate();
        filters.find_map(|(filter, it)| {
            Some(Decision {
                filter,
                clause: it.clause_that_holds(&args)?,
                action: it.action,
            })
        })
    }

    fn is_foreign(&self, call: &Call) -> bool {
        let foreign = self.arch.foreign_numbers();
        call.arch != self.arch.audit() || foreign.is_some_and(|first| call.number >= first)
    }
}

impl Filter {
    /// The first of the condition's clauses that holds; the only one, if there is no condition.
    fn clause_that_holds(&self, args: &[u64; 6]) -> Option<usize> {
        let atom = |atom: &Atom| {
            let argument = args
                .get(usize::from(atom.argument))
                .copied()
                .unwrap_or_default();
            atom.operator.holds(argument, atom.value)
        };
        match &self.condition {
            None => Some(0),
            Some(clauses) => clauses.iter().position(|c| c.iter().all(atom)),
        }
    }
}
