//! A private apt root: fetches and unpacks packages of a Debian release that need not be the
//! host's, without root and without touching the host. It installs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{output, text};

/// Names the mirror to use, for hosts whose own sources name none of Debian's.
pub(crate) const MIRROR_VARIABLE: &str = "VUDEV_DEBIAN_MIRROR";

/// Debian's own keys, as its package `debian-archive-keyring` lays them out.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A folder with apt's configuration, state and cache in it.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// A new root in `folder` for these suites of the mirror that the host uses.
    pub(crate) fn new(folder: &Path, suites: &[&str]) -> Result<Self> {
        Self::with_foreign(folder, suites, &[])
    }

    /// As [`Apt::new`], with packages of foreign architectures too: `name:architecture`.
    pub(crate) fn with_foreign(folder: &Path, suites: &[&str], foreign: &[&str]) -> Result<Self> {
        let mirror = mirror()?;
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing; `apt-get install debian-archive-keyring` brings it"
        );
        for part in ["etc/parts", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("state/status"), "")?;
        let source = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        let sources: String = suites.iter().map(source).collect();
        fs::write(folder.join("etc/sources.list"), sources)?;
        let own = configuration(&folder.display().to_string(), foreign);
        let configuration = acquire_options()? + &own;
        fs::write(folder.join("apt.conf"), configuration)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&self) -> Result<()> {
        // Without this a failed download is only a warning.
        let strict = ["-o", "APT::Update::Error-Mode=any"];
        output(self.command("apt-get").args(["-q", "update"]).args(strict))
            .context("fetching the lists of packages; is the network there?")?;
        Ok(())
    }

    /// Fetches these packages and all they depend on, and returns the files.
    pub(crate) fn download(&self, suite: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let options = [
            "-q",
            "-y",
            "-d",
            "--no-install-recommends",
            "-t",
            suite,
            "install",
        ];
        output(self.command("apt-get").args(options).args(packages))
            .context("fetching packages; is the network there?")?;
        debs(&self.folder.join("cache/archives"))
    }

    /// Fetches one package without what it depends on.
    pub(crate) fn download_one(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("single");
        fs::create_dir_all(&folder)?;
        let mut command = self.command("apt-get");
        output(
            command
                .args(["-q", "download", package])
                .current_dir(&folder),
        )
        .with_context(|| format!("fetching {package}; is the network there?"))?;
        let (name, architecture) = package.split_once(':').unwrap_or((package, ""));
        let (start, end) = (format!("{name}_"), format!("{architecture}.deb"));
        let found = debs(&folder)?.into_iter().find(|deb| {
            let file = deb.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&start) && file.ends_with(&end)
        });
        found.with_context(|| format!("apt-get brought no {package}"))
    }

    /// The first package that `package` of this suite depends on whose name has this prefix.
    pub(crate) fn dependency(&self, package: &str, suite: &str, prefix: &str) -> Result<String> {
        let wanted = format!("{package}/{suite}");
        let shown = text(
            self.command("apt-cache")
                .args(["show", "--no-all-versions", &wanted]),
        )?;
        let depends = shown
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "));
        depends
            .unwrap_or_default()
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on no {prefix}…"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }
}

/// Unpacks packages into a folder; none of their scripts is run.
pub(crate) fn unpack(debs: &[PathBuf], into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    for deb in debs {
        output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))?;
    }
    Ok(())
}

/// The mirror of Debian that the host's own apt sources name.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|end| end == "list" || end == "sources")
        {
            texts.push(fs::read_to_string(path).unwrap_or_default());
        }
    }
    match texts
        .iter()
        .flat_map(|text| uris(text))
        .find(|uri| is_debian(uri))
    {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!(
            "the host's apt sources name no mirror of Debian; set {MIRROR_VARIABLE} to one, or \
             point to a QEMU and a kernel (see README.md, Troubleshooting)"
        ),
    }
}

/// The URIs in a sources file of either format (sources.list(5)).
fn uris(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| {
        let words = line.split_whitespace();
        let is_source = line.starts_with("deb ") || line.starts_with("URIs:");
        words.filter(move |word| is_source && word.contains("://"))
    })
}

/// Debian's archive is always called that; its security archive has another name.
fn is_debian(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

/// How the host reaches its mirror: proxies, time limits. Its hooks must not run for us.
fn acquire_options() -> Result<String> {
    let dump = text(Command::new("apt-config").arg("dump"))?;
    let options = dump.lines().filter(|line| line.starts_with("Acquire::"));
    Ok(options.map(|line| format!("{line}\n")).collect())
}

fn configuration(folder: &str, foreign: &[&str]) -> String {
    let foreign: String = foreign.iter().map(|name| format!(" \"{name}\";")).collect();
    format!(
        r#"Dir::Etc "{folder}/etc";
Dir::Etc::sourcelist "{folder}/etc/sources.list";
Dir::Etc::sourceparts "{folder}/etc/parts";
Dir::Etc::parts "{folder}/etc/parts";
Dir::Etc::preferencesparts "{folder}/etc/parts";
Dir::Etc::trustedparts "{folder}/etc/parts";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}";
APT::Architecture "amd64";
APT::Architectures {{ "amd64";{foreign} }};
APT::Sandbox::User "";
Acquire::Languages "none";
Debug::NoLocking "true";
"#
    )
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_found_in_both_formats_of_sources() {
        let one_line = "# deb http://a.example/debian x main\n\
            deb [arch=amd64] http://b.example/debian/ x main";
        let stanza = "Types: deb\nURIs: http://c.example/debian-security http://d.example/debian\n";
        let find = |text| uris(text).find(|uri| is_debian(uri)).map(str::to_owned);
        assert_eq!(find(one_line).as_deref(), Some("http://b.example/debian/"));
        assert_eq!(find(stanza).as_deref(), Some("http://d.example/debian"));
        assert_eq!(find("deb http://e.example/ubuntu noble main"), None);
    }
}
