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
    /// Makes the link. One that leads nowhere is left over from a command that was killed, and
    /// replaced; whatever else is there stays.
    pub(super) fn make(values: &Values, alias: &Alias) -> Result<Self, OptionError> {
        let (path, target) = (values.path(alias.key), &alias.target);
        let link = || rustix::fs::symlink(target, path);
        let made = match link() {
            Err(Errno::EXIST) if leads_nowhere(path) => {
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

impl Drop for AliasGuard {
    fn drop(&mut self) {
        let target = rustix::fs::readlink(&self.path, Vec::new());
        if target
            .is_ok_and(|target| target.as_bytes() == self.target.as_os_str().as_encoded_bytes())
        {
            // There is nobody to tell: the next run replaces it.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}
