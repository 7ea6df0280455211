//! Programs of ours inside a guest that has nothing but busybox: a static one as it is, another
//! with the loader and the libraries of the running program, which was built by the same toolchain
//! for the same system.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

use crate::archive::Archive;

/// Where the guest has the libraries.
const LIBRARIES: &str = "lib64";

/// Where `cargo xtask static` puts what it builds, in the target folder: releases of their own.
pub fn static_folder(release: bool) -> &'static str {
    if release { "static-release" } else { "static" }
}

/// The static `vudev` of the target folder that the running program was built in.
pub fn static_vudev() -> Result<PathBuf> {
    static_program("vudev")
}

/// A static program of that folder: a release if the running program is one.
pub fn static_program(name: &str) -> Result<PathBuf> {
    let (folder, option) = match cfg!(debug_assertions) {
        true => (static_folder(false), ""),
        false => (static_folder(true), " --release"),
    };
    let running = env::current_exe().context("where is the running program?")?;
    let mut candidates = running
        .ancestors()
        .map(|above| above.join(folder).join(name));
    let found = candidates.find(|program| program.is_file());
    found.with_context(|| {
        format!("there is no static {name}; `cargo xtask static{option}` builds it")
    })
}

/// Adds programs to `/bin`. One that needs a loader is started through it, by a script of its name.
pub(crate) fn add<W: Write>(archive: &mut Archive<W>, programs: &[PathBuf]) -> Result<()> {
    let mut dynamic = Vec::new();
    for program in programs {
        let (name, bytes) = (name(program)?, read(program)?);
        if needs_loader(&bytes) {
            dynamic.push((name, bytes));
        } else {
            archive.program(&format!("bin/{name}"), &bytes)?;
        }
    }
    if dynamic.is_empty() {
        return Ok(());
    }
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let loader = add_libraries(archive, &libraries(&maps))?;
    for (name, bytes) in dynamic {
        archive.program(&format!("bin/{name}.program"), &bytes)?;
        let script = format!(
            "#!/bin/sh\n\
             exec /{LIBRARIES}/{loader} --library-path /{LIBRARIES} /bin/{name}.program \"$@\"\n"
        );
        archive.program(&format!("bin/{name}"), script.as_bytes())?;
    }
    Ok(())
}

/// The name of the loader among them.
fn add_libraries<W: Write>(archive: &mut Archive<W>, libraries: &[&Path]) -> Result<String> {
    archive.directory(LIBRARIES)?;
    let mut loader = None;
    for library in libraries {
        let name = name(library)?;
        archive.program(&format!("{LIBRARIES}/{name}"), &read(library)?)?;
        if name.starts_with("ld-") {
            loader = Some(name.to_owned());
        }
    }
    loader.context("this program has no loader, and so none for others")
}

/// Whether an ELF file of 64 bits names an interpreter (elf(5), `PT_INTERP`).
fn needs_loader(file: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(file.get(at..at + size)?);
        Some(u64::from_le_bytes(bytes))
    };
    // e_phoff, e_phentsize, e_phnum; each program header begins with its type.
    let segments = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((start, size, count)) = segments() else {
        return false;
    };
    (0..count).any(|segment| {
        let at = usize::try_from(start.wrapping_add(segment * size));
        at.is_ok_and(|at| number(at, 4) == Some(PT_INTERP))
    })
}

/// The libraries, the loader among them, in a table of mappings (proc(5), maps).
fn libraries(maps: &str) -> Vec<&Path> {
    let mut paths: Vec<_> = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("r-xp"))
        .filter_map(|line| Some(&line[line.find('/')?..]))
        .filter(|path| path.contains(".so"))
        .map(Path::new)
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

fn name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.with_context(|| format!("{} has no name", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_what_is_mapped_to_execute_and_no_program() {
        let maps = "\
            5581-5582 r-xp 0000 fe:00 1 /t/deps/guest-1\n\
            7f00-7f01 r--p 0000 fe:00 2 /usr/lib/libc.so.6\n\
            7f01-7f02 r-xp 1000 fe:00 2 /usr/lib/libc.so.6\n\
            7f03-7f04 r-xp 1000 fe:00 3 /usr/lib/ld-linux-x86-64.so.2\n\
            7ffd-7ffe r-xp 0000 00:00 0 [vdso]\n";
        let expected = ["/usr/lib/ld-linux-x86-64.so.2", "/usr/lib/libc.so.6"];
        assert_eq!(libraries(maps), expected.map(Path::new));
    }

    #[test]
    fn only_a_program_that_names_an_interpreter_needs_a_loader() {
        let mut file = vec![0; 64 + 2 * 56];
        (file[32], file[54], file[56]) = (64, 56, 2);
        assert!(!needs_loader(&file));
        file[64 + 56] = 3;
        assert!(needs_loader(&file));
        assert!(!needs_loader(&file[..64 + 56]), "cut short");
        assert!(!needs_loader(b"#!/bin/sh\n"));
    }
}
