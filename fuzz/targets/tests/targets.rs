//! Every target on all inputs that are kept, on random bytes, and on what becomes of the kept ones
//! when some of their bytes change. A failure prints its input, and the seed to run it again with:
//! `VUDEV_SEED`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use vudev_fuzz_targets::{TARGETS, Target};

/// `CI` tries so many times as many inputs.
const TIMES_IN_CI: u32 = 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The files of a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| {
        panic!("{}: {error}", folder.display());
    });
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Random bytes, or a kept input that is cut, lengthened, or changed in some places.
    fn input(&mut self, kept: &[Vec<u8>], most: usize) -> Vec<u8> {
        if kept.is_empty() || self.below(4) == 0 {
            let length = self.below(most + 1);
            return (0..length).map(|_| self.byte()).collect();
        }
        let mut bytes = kept[self.below(kept.len())].clone();
        for _ in 0..1 + self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => (0..self.below(64)).for_each(|_| bytes.push(self.byte())),
                2 => {
                    let from = &kept[self.below(kept.len())];
                    let start = self.below(from.len() + 1);
                    let piece: Vec<_> = from[start..].iter().copied().take(40).collect();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.byte();
                    }
                }
            }
        }
        bytes.truncate(most);
        bytes
    }
}

fn run(target: &Target, bytes: &[u8], what: &str) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    if let Err(panic) = outcome {
        eprintln!("{}: {what}: {bytes:?}", target.name);
        std::panic::resume_unwind(panic);
    }
}

fn tried(name: &str, cases: u32) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut kept = Vec::new();
    for file in files(&fuzz().join("inputs").join(name)) {
        let bytes = fs::read(&file).unwrap();
        run(target, &bytes, &file.display().to_string());
        kept.push(bytes);
    }
    assert!(!kept.is_empty(), "{name} has inputs to begin with");
    let seed = env::var("VUDEV_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("VUDEV_SEED={seed}");
    let times = if env::var_os("CI").is_some() {
        TIMES_IN_CI
    } else {
        1
    };
    let cases = cases * times;
    let mut random = Random(seed);
    for case in 0..cases {
        let bytes = random.input(&kept, target.bytes_max);
        run(target, &bytes, &format!("case {case} of VUDEV_SEED={seed}"));
    }
}

macro_rules! targets {
    ($($promise:ident => $target:literal, $cases:literal;)*) => {
        $(#[test]
        fn $promise() {
            tried($target, $cases);
        })*

        /// In the order of the list.
        const NAMES: &[&str] = &[$($target),*];
    };
}

targets! {
    no_message_of_a_vfio_user_client_breaks_the_codec => "vfio_user_codec", 4000;
    no_client_driver_and_front_end_break_the_proxy => "vfio_user_proxy", 500;
    no_configuration_space_breaks_the_walk_of_capabilities => "capability_walk", 4000;
    no_message_of_a_front_end_breaks_the_codec => "vhost_user_codec", 4000;
    no_function_breaks_the_driver_and_the_session_above_it => "vvu_function", 1500;
    no_descriptors_break_the_walk_of_a_chain => "chain_walk", 1500;
    no_argument_breaks_the_options => "option_grammar", 4000;
    no_text_breaks_the_policies => "policy_language", 1000;
}

#[test]
fn every_target_is_tried_here_and_has_its_file_for_the_fuzzer() {
    assert_eq!(NAMES, TARGETS.map(|target| target.name));
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in NAMES {
        let file = format!("fuzz_targets/{name}.rs");
        let text = fs::read_to_string(fuzz().join(&file)).unwrap();
        assert!(text.contains(&format!("run(\"{name}\", bytes)")), "{name}");
        let program = format!("[[bin]]\nname = \"{name}\"\npath = \"{file}\"\n");
        assert!(manifest.contains(&program), "{name}");
    }
    let mut names = NAMES.to_vec();
    names.sort_unstable();
    for folder in ["fuzz_targets", "inputs"] {
        let files = files(&fuzz().join(folder));
        let stems = files.iter().map(|file| file.file_stem().unwrap());
        assert!(stems.eq(names.iter().copied()), "{folder}: {files:?}");
    }
}
