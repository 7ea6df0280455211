//! Random policies against what they mean, on all architectures: a text is generated beside its
//! meaning, and then the parsed policy must be that meaning, and the compiled program must answer
//! each call as the direct evaluation does.
//!
//! `PROPTEST_CASES` says how many policies; without it, many under `CI` and few elsewhere. A
//! failure prints a seed; `PROPTEST_RNG_SEED` takes it.
#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use vudev_jail::policy::{self, Action, Arch, Atom, Call, Filter, Operator};

const CASES_IN_CI: u32 = 100_000;
const CASES: u32 = 6_000;
/// Of each policy: ones that it has rules for, and as many others.
const CALLS: usize = 8;

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a property on random words: what is made of fewer and smaller words is simpler, so that a
/// failure shrinks to a short policy.
fn check(share: u32, property: impl Fn(&mut Words, u64) -> Result<(), TestCaseError>) {
    let by_default = match std::env::var_os("CI") {
        Some(_) => CASES_IN_CI,
        None => CASES,
    };
    let cases = variable("PROPTEST_CASES").unwrap_or(by_default);
    let seed = variable("PROPTEST_RNG_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let mut runner = TestRunner::new(Config {
        cases: cases.div_ceil(share),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    });
    // Short ones are as likely as long ones.
    let words = prop_oneof![
        9 => prop::collection::vec(any::<u64>(), 0..80),
        1 => prop::collection::vec(any::<u64>(), 0..640),
    ];
    let result = runner.run(&(words, any::<u64>()), |(words, seed)| {
        property(&mut Words::given(words), seed)
    });
    if let Err(error) = result {
        panic!("{error}\nPROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} does it again");
    }
}

/// Choices; when they are used up, always the first one.
struct Words {
    given: std::vec::IntoIter<u64>,
    /// Of those that never end.
    state: Option<u64>,
}

impl Words {
    fn given(words: Vec<u64>) -> Self {
        Self {
            given: words.into_iter(),
            state: None,
        }
    }

    fn endless(seed: u64) -> Self {
        Self {
            given: Vec::new().into_iter(),
            state: Some(seed),
        }
    }

    fn next(&mut self) -> u64 {
        match &mut self.state {
            // splitmix64
            Some(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed ^ mixed >> 31
            }
            None => self.given.next().unwrap_or_default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.state.is_none() && self.given.len() == 0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// One of this many times.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }
}

/// Bits of an argument, and all of them.
fn word(arch: Arch) -> (u32, u64) {
    match arch {
        Arch::X86_64 | Arch::Aarch64 => (64, u64::MAX),
        Arch::Arm => (32, u64::from(u32::MAX)),
    }
}

/// All calls of an architecture by number.
fn calls(arch: Arch) -> &'static [(u32, &'static str)] {
    static CALLS: OnceLock<Vec<Vec<(u32, &str)>>> = OnceLock::new();
    let all = CALLS.get_or_init(|| {
        let numbers = || (0..0x1000).chain(0xf_0000..0xf_0010);
        let named = |arch: Arch| {
            numbers()
                .filter_map(|number| Some((number, arch.syscall_name(number)?)))
                .collect()
        };
        Arch::ALL.map(named).into()
    });
    &all[Arch::ALL.iter().position(|known| *known == arch).unwrap()]
}

const OPERATORS: [(&str, Operator); 8] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    ("<=", Operator::LessOrEqual),
    (">", Operator::Greater),
    (">=", Operator::GreaterOrEqual),
    ("&", Operator::AnyBit),
    ("in", Operator::OnlyBits),
];

const DEFAULTS: [(&str, Action); 5] = [
    ("trap", Action::Trap),
    ("kill", Action::KillProcess),
    ("kill-process", Action::KillProcess),
    ("kill-thread", Action::KillThread),
    ("user-notify", Action::UserNotify),
];

const ACTIONS: [(&str, Action); 10] = [
    ("allow", Action::Allow),
    ("1", Action::Allow),
    ("return ENOENT", Action::Errno(2)),
    ("return 0", Action::Errno(0)),
    ("return 4095", Action::Errno(4095)),
    ("log", Action::Log),
    ("trap", Action::Trap),
    ("kill-process", Action::KillProcess),
    ("kill-thread", Action::KillThread),
    ("user-notify", Action::UserNotify),
];

/// Names that mean one number everywhere.
const NAMES: [(&str, i64); 4] = [
    ("PROT_NONE", 0),
    ("PROT_EXEC", 4),
    ("AT_FDCWD", -100),
    ("MAP_FIXED|MAP_SHARED", 17),
];

/// A policy as text and as what it means, with the numbers that it compares with.
struct Generated<'a> {
    words: &'a mut Words,
    arch: Arch,
    files: [String; 2],
    frequencies: String,
    meaning: BTreeMap<u32, Vec<Filter>>,
    default: Action,
    values: Vec<u64>,
}

impl<'a> Generated<'a> {
    fn new(words: &'a mut Words, arch: Arch) -> Self {
        let (default_text, default) = words.of(&DEFAULTS);
        let mut this = Self {
            words,
            arch,
            files: [String::new(), format!("@default {default_text}\n")],
            frequencies: String::new(),
            meaning: BTreeMap::new(),
            default,
            values: vec![0, 1, 1 << 31, u64::MAX >> 1, u64::MAX],
        };
        let parts = this.words.below(3);
        for statement in 0..=this.words.below(128) {
            if this.words.is_empty() {
                break;
            }
            this.statement(usize::from(statement >= parts));
        }
        this
    }

    /// Appends a line of rules to one of the files.
    fn statement(&mut self, file: usize) {
        let mut chosen = BTreeMap::new();
        for _ in 0..=self.words.below(8) / 6 {
            let (number, name) = self.words.of(calls(self.arch));
            let filters = self.meaning.get(&number);
            let decided = filters.is_some_and(|f| f.iter().any(|f| f.condition.is_none()));
            if !decided {
                chosen.insert(number, name);
            }
        }
        let filters = self.filters(&chosen.keys().copied().collect());
        if chosen.is_empty() || filters.is_empty() {
            return;
        }
        let names: Vec<_> = chosen.values().map(|name| self.name(name)).collect();
        let texts: Vec<_> = filters.iter().map(|(text, _)| text.clone()).collect();
        let group = |items: &[String]| match items {
            [one] => one.clone(),
            items => format!("{{{}}}", items.join(", ")),
        };
        writeln!(self.files[file], "{}: {}", group(&names), group(&texts)).unwrap();
        for (number, name) in &chosen {
            let all = self.meaning.entry(*number).or_default();
            all.extend(filters.iter().map(|(_, filter)| filter.clone()));
            if self.words.one_in(4) {
                let count = self.words.next() >> self.words.below(64);
                writeln!(self.frequencies, "{name}: {count}").unwrap();
            }
        }
    }

    /// A name as it may stand in a rule of this architecture; now and then with one of another.
    fn name(&mut self, name: &str) -> String {
        let (own, other) = match self.arch {
            Arch::X86_64 => ("x86_64", "arm,aarch64"),
            Arch::Aarch64 => ("arm64", "x86_64"),
            Arch::Arm => ("arm", "arm64,riscv64"),
        };
        match self.words.below(24) {
            22 => format!("{name}[arch={own}]"),
            23 => format!("{name}[arch=s390x,{own}]"),
            21 => {
                let decoy = format!("nothing_of_ours[arch={other}]: 1\n");
                self.files[1].push_str(&decoy);
                name.to_owned()
            }
            _ => name.to_owned(),
        }
    }

    /// Filters that contradict none of these calls' others; an unconditional one is the last.
    fn filters(&mut self, numbers: &BTreeSet<u32>) -> Vec<(String, Filter)> {
        let mut filters: Vec<(String, Filter)> = Vec::new();
        for _ in 0..=self.words.below(8) / 5 {
            let (text, filter) = self.filter();
            let others = numbers.iter().filter_map(|number| self.meaning.get(number));
            let mut others = others.flatten().chain(filters.iter().map(|(_, f)| f));
            if others.any(|other| other.condition == filter.condition) {
                continue;
            }
            let last = filter.condition.is_none();
            filters.push((text, filter));
            if last {
                break;
            }
        }
        filters
    }

    fn filter(&mut self) -> (String, Filter) {
        let (action_text, action) = self.words.of(&ACTIONS);
        if self.words.one_in(6) {
            let condition = None;
            return (action_text.to_owned(), Filter { condition, action });
        }
        let mut text = String::new();
        let mut clauses = Vec::new();
        for clause in 0..=self.words.below(8) / 5 {
            text.push_str(if clause == 0 { "" } else { " || " });
            let mut atoms = Vec::new();
            for atom in 0..=self.words.below(8) / 4 {
                text.push_str(if atom == 0 { "" } else { " && " });
                let (operator_text, operator) = self.words.of(&OPERATORS);
                let argument = u8::try_from(self.words.below(6)).unwrap();
                let (value_text, value) = self.value();
                write!(text, "arg{argument} {operator_text} {value_text}").unwrap();
                atoms.push(Atom {
                    argument,
                    operator,
                    value,
                });
                self.values.push(value);
            }
            clauses.push(atoms);
        }
        let condition = Some(clauses);
        if action != Action::Allow || self.words.one_in(2) {
            write!(text, "; {action_text}").unwrap();
        }
        (text, Filter { condition, action })
    }

    /// A number in one of the ways to write it.
    fn value(&mut self) -> (String, u64) {
        let (bits, mask) = word(self.arch);
        let value = self.number() & mask;
        let text = match self.words.below(8) {
            0 => format!("{value:#x}"),
            1 => format!("{value}"),
            2 => format!("0{value:o}"),
            3 => format!("~{:#x}", !value & mask),
            4 => format!("~(~{value})"),
            5 => {
                let half = value & self.words.next();
                format!("({half:#x}|0)|{:#x}", value & !half)
            }
            6 if value > mask / 2 => {
                format!("-{}", (1_u128 << bits) - u128::from(value))
            }
            _ => {
                let (text, value) = self.words.of(&NAMES);
                return (text.to_owned(), value as u64 & mask);
            }
        };
        (text, value)
    }

    /// At the edges of words and signs, one bit, anything, or near what was there before.
    fn number(&mut self) -> u64 {
        let edge = self.words.next();
        match self.words.below(8) {
            0..4 => (1_u64 << (edge % 64)).wrapping_sub(edge >> 6 & 1),
            4 => edge,
            5 => u64::from((edge & 0xffff_ffff) as u32),
            6 => edge << 32 | edge >> 62,
            _ => self.near(),
        }
    }

    /// Something that a rule compares with, or its neighbour, or the same in one word only.
    fn near(&mut self) -> u64 {
        let value = self.values[self.words.below(self.values.len())];
        match self.words.below(8) {
            0 => value.wrapping_add(1),
            1 => value.wrapping_sub(1),
            2 => value ^ 1 << 32,
            3 => !value,
            4 => value ^ 1 << self.words.below(64),
            _ => value,
        }
    }

    fn source(&self) -> BTreeMap<String, String> {
        let arch = self.arch;
        let [part, main] = &self.files;
        let main = format!("@include ./parts/../parts/a.policy\n@frequency ./counts\n{main}");
        BTreeMap::from([
            (format!("{arch}/a_device.policy"), main),
            (format!("{arch}/parts/a.policy"), part.clone()),
            (format!("{arch}/counts"), self.frequencies.clone()),
        ])
    }

    /// Numbers with rules and any; a few of another architecture or calling convention.
    fn call(&mut self, ruled: &[u32]) -> Call {
        let number = match self.words.below(8) {
            0..5 if !ruled.is_empty() => self.words.of(ruled),
            5 if !ruled.is_empty() => self.words.of(ruled) | 0x4000_0000,
            6 => (self.words.next() & 0xffff_ffff) as u32,
            _ => u32::try_from(self.words.below(460)).unwrap(),
        };
        let arch = match self.words.one_in(24) {
            true => self
                .words
                .of(&[0x4000_0003, 0xc000_003e, 0xc000_00b7, 0x4000_0028]),
            false => self.arch.audit(),
        };
        let args = [0; 6].map(|_| match self.words.one_in(3) {
            true => self.number(),
            false => self.near(),
        });
        Call { number, arch, args }
    }
}

/// One third of the cases, on one of three architectures.
fn the_program_answers_what_the_policy_means(arch: Arch) {
    check(3, |words, seed| {
        let mut generated = Generated::new(words, arch);
        let source = generated.source();
        let policy = policy::read("a_device", arch, &source)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{source:#?}")))?;
        prop_assert_eq!(policy.default, generated.default);
        let parsed: BTreeMap<_, _> = policy
            .rules
            .iter()
            .map(|(number, rule)| (*number, rule.filters.clone()))
            .collect();
        prop_assert_eq!(&parsed, &generated.meaning, "{:#?}", source);
        let program = policy
            .compile()
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        let ruled: Vec<_> = parsed.into_keys().collect();
        let mut endless = Words::endless(seed);
        generated.words = &mut endless;
        for _ in 0..CALLS {
            let call = generated.call(&ruled);
            let meant = policy.evaluate(&call);
            prop_assert_eq!(
                program.run(&call),
                Some(meant),
                "{:#x?}\n{:#?}",
                call,
                source
            );
        }
        Ok(())
    });
}

#[test]
fn programs_answer_what_policies_mean_on_x86_64() {
    the_program_answers_what_the_policy_means(Arch::X86_64);
}

#[test]
fn programs_answer_what_policies_mean_on_aarch64() {
    the_program_answers_what_the_policy_means(Arch::Aarch64);
}

#[test]
fn programs_answer_what_policies_mean_on_arm() {
    the_program_answers_what_the_policy_means(Arch::Arm);
}

/// Pieces of the language in no order, and what is in none.
const PIECES: [&str; 40] = [
    "read",
    "kill",
    "nope",
    ":",
    ": ",
    ";",
    "|",
    "||",
    "&",
    "&&",
    "==",
    "=",
    "<",
    ">=",
    "~",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "[arch=x86_64]",
    ",",
    "arg0",
    "arg5",
    "arg6",
    "in",
    "return",
    "1",
    "-1",
    "0x",
    "07",
    "99999999999999999999",
    "EPERM",
    "trace",
    "@default",
    "@include ./a",
    "\\\n",
    "\n",
    "\u{e9}",
];

#[test]
fn no_text_makes_the_parser_panic() {
    check(10, |words, _| {
        let mut text = String::new();
        while !words.is_empty() {
            let piece = words.of(&PIECES);
            text.push_str(piece);
            text.push_str(words.of(&["", " "]));
        }
        let source = BTreeMap::from([("x86_64/a_device.policy".to_owned(), text)]);
        if let Ok(policy) = policy::read("a_device", Arch::X86_64, &source) {
            let _ = policy.compile();
        }
        Ok(())
    });
}
