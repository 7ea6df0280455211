//! Programs of ours inside a guest that has nothing but busybox: each with the loader and the
//! libraries of the running program, which was built by the same toolchain for the same system.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Archive;

/// Where the guest has the libraries.
const LIBRARIES: &str = "lib64";

/// Adds programs to `/bin`. Each is started through its loader, by a script of its name.
pub(crate) fn add<W: Write>(archive: &mut Archive<W>, programs: &[PathBuf]) -> Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let libraries = libraries(&maps);
    archive.directory(LIBRARIES)?;
    for library in &libraries {
        archive.program(&format!("{LIBRARIES}/{}", name(library)?), &read(library)?)?;
    }
    let loader = libraries
        .iter()
        .map(|path| name(path))
        .collect::<Result<Vec<_>>>()?;
    let loader = loader.into_iter().find(|name| name.starts_with("ld-"));
    for program in programs {
        let (name, bytes) = (name(program)?, read(program)?);
        let Some(loader) = loader else {
            // A program without a loader is whole by itself.
            archive.program(&format!("bin/{name}"), &bytes)?;
            continue;
        };
        archive.program(&format!("bin/{name}.program"), &bytes)?;
        let script = format!(
            "#!/bin/sh\n\
             exec /{LIBRARIES}/{loader} --library-path /{LIBRARIES} /bin/{name}.program \"$@\"\n"
        );
        archive.program(&format!("bin/{name}"), script.as_bytes())?;
    }
    Ok(())
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
}
