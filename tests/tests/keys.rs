//! Every key of every device's option table is in some test of that device. What such a test shows
//! of the key only a reader can judge; that none is forgotten is what is kept here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vudev_host::DeviceKind;
use vudev_host::kinds::{Block, Net, Rng, Serial, Vsock};
use vudev_host::options::Table;

/// The tests of a device: suites that name it, and what stands behind `mod tests` in its kind.
fn tests_of(device: &str, root: &Path) -> Result<String> {
    let kind = root.join("host/src/kinds").join(format!("{device}.rs"));
    let kind = fs::read_to_string(kind).unwrap_or_default();
    let mut texts = String::from(kind.split_once("mod tests").map_or("", |(_, tests)| tests));
    for folder in ["tests/tests", "bin/tests", "host/src/kinds/tests"] {
        for path in sources(&root.join(folder))? {
            let text = fs::read_to_string(&path)?;
            let of_device = path.file_stem().is_some_and(|stem| stem == device)
                || [format!("\"{device}\""), format!(".{device}(")]
                    .iter()
                    .any(|mark| text.contains(mark));
            if of_device && !path.ends_with("keys.rs") {
                texts.push_str(&text);
            }
        }
    }
    Ok(texts)
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let paths: Vec<_> = paths.collect::<Result<_>>()?;
    let is_source = |path: &PathBuf| path.extension().is_some_and(|end| end == "rs");
    Ok(paths.into_iter().filter(is_source).collect())
}

/// Whether it is given a value, or stands alone between the ends of an element.
fn is_said(key: &str, texts: &str) -> bool {
    texts.match_indices(key).any(|(at, _)| {
        let before = texts[..at].chars().next_back().unwrap_or(',');
        let after = texts[at + key.len()..].chars().next().unwrap_or(',');
        (before == ',' || before == '"') && ['=', ',', '"'].contains(&after)
    })
}

#[test]
fn every_key_of_every_device_is_in_a_test_of_that_device() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.context("a workspace")?;
    let tables: [&Table; 5] = [
        Serial::table(),
        Block::table(),
        Net::table(),
        Rng::table(),
        Vsock::table(),
    ];
    for table in tables {
        let texts = tests_of(table.device, root)?;
        for key in table.keys {
            let spellings = [key.name.to_owned(), key.name.replace('-', "_")];
            let said = spellings.iter().any(|key| is_said(key, &texts));
            assert!(said, "--{}: no test has {}=", table.device, key.name);
        }
    }
    Ok(())
}
