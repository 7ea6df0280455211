//! Symbolic links to what devices have made for themselves: a name of the user's choice for a
//! terminal whose own name is the kernel's choice. They go when the devices do.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::kind::Alias;
use crate::options::{OptionError, Values, reason, shown};

/// Removes the link on drop, if it still leads where ours did.
#[derive(Debug)]
pub(super) struct AliasGuard {
    path: PathBuf,
    target: PathBuf,
}

impl AliasGuard {
    /// Makes the link. One that leads nowhere, or to what is ours now, is left over from a command
    /// that was killed, and replaced; whatever else is there stays.
    pub(super) fn make(values: &Values, alias: &Alias) -> Result<Self, OptionError> {
        let (path, target) = (values.path(alias.key), &alias.target);
        let link = || rustix::fs::symlink(target, path);
        let made = match link() {
            Err(Errno::EXIST) if leads_nowhere(path) || leads_to(path, target) => {
                rustix::fs::unlink(path).and_then(|()| link())
            }
            made => made,
        };
        made.map_err(|errno| {
            let (path, why) = (shown(path), reason(errno));
            let error = values.error(alias.key, format!("cannot make the link {path}: {why}"));
            match errno {
                Errno::EXIST => error.remedy("remove what is there, or write another path"),
                _ => error.remedy("use a directory that you may write to"),
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            target: target.clone(),
        })
    }
}

fn leads_nowhere(path: &Path) -> bool {
    rustix::fs::readlink(path, Vec::new()).is_ok()
        && rustix::fs::stat(path).err() == Some(Errno::NOENT)
}

/// The kernel gives the same name to a terminal again.
fn leads_to(path: &Path, target: &Path) -> bool {
    rustix::fs::readlink(path, Vec::new())
        .is_ok_and(|found| found.as_bytes() == target.as_os_str().as_encoded_bytes())
}

impl Drop for AliasGuard {
    fn drop(&mut self) {
        if leads_to(&self.path, &self.target) {
            // There is nobody to tell: the next run replaces it.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::DeviceKind;
    use crate::kinds::Serial;

    #[test]
    fn a_link_that_a_killed_command_has_left_is_replaced_and_no_other() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("tty");
        let argument = format!("type=pty,path={},vhost=s", path.display());
        let values = Values::parse(Serial::table(), &argument).expect("lawful");
        let alias = Alias {
            part: 0,
            key: "path",
            target: "/dev/null".into(),
        };
        // It leads nowhere, or to what the kernel has given the same name again.
        for left in ["/nowhere", "/dev/null"] {
            rustix::fs::symlink(left, &path).expect("made");
            drop(AliasGuard::make(&values, &alias).expect("replaced"));
            assert!(!path.exists(), "{left}");
        }
        rustix::fs::symlink("/dev/zero", &path).expect("made");
        let error = AliasGuard::make(&values, &alias).expect_err("somebody else's");
        assert!(error.to_string().contains("File exists"), "{error}");
        assert!(leads_to(&path, Path::new("/dev/zero")));
    }
}
