//! Which outer id is root of a device's user namespace; never the real root's.

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::SpawnError;
use super::error::STEP_IDENTITY;

/// The kernel's overflow id ("nobody"): owns nothing, and exists without an entry in any file.
const NOBODY: u32 = 65534;

/// The ids that the namespace's 0 stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: u32,
    pub(super) group: u32,
    /// Whether the child may and shall empty its supplementary groups. An ordinary user may not
    /// (a group can be what *denies* access to a file), and keeps them without being able to use
    /// what root of the host gives them.
    pub(super) empty_groups: bool,
}

impl Identity {
    /// As root: nobody. As a user: that user. As root of a namespace that maps no `NOBODY` (a
    /// rootless container): that root, which outside is an ordinary user.
    pub(super) fn choose() -> Result<Self, SpawnError> {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        if user != 0 {
            return Ok(Self {
                user,
                group,
                empty_groups: false,
            });
        }
        let own = |name| {
            std::fs::read_to_string(format!("/proc/self/{name}"))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                .map_err(SpawnError::at("read our own id map"))
        };
        let choose = |map: &str| {
            outside_root(map).ok_or_else(|| SpawnError::new(STEP_IDENTITY, Errno::PERM))
        };
        let user = choose(&own("uid_map")?)?;
        let group = choose(&own("gid_map")?)?;
        // "deny" in our namespace (a rootless container made by its user) holds below it too.
        let empty_groups = own("setgroups")?.trim() == "allow";
        Ok(Self {
            user,
            group,
            empty_groups,
        })
    }
}

/// The id to use for one map (lines of "inside outside count", `user_namespaces(7)`).
fn outside_root(map: &str) -> Option<u32> {
    let lines = || {
        map.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            Some([
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
            ])
        })
    };
    let covers =
        |id: u64| move |&[inside, _, count]: &[u64; 3]| id >= inside && id - inside < count;
    if lines().any(|line| covers(u64::from(NOBODY))(&line)) {
        return Some(NOBODY);
    }
    let [inside, outside, _] = lines().find(covers(0))?;
    (outside - inside != 0).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_nobody_and_never_stays_the_real_root() {
        assert_eq!(
            outside_root("         0          0 4294967295\n"),
            Some(NOBODY)
        );
        assert_eq!(outside_root("0 100000 65536\n"), Some(NOBODY));
        assert_eq!(
            outside_root("0 1000 1\n"),
            Some(0),
            "root of a rootless container"
        );
        assert_eq!(
            outside_root("0 0 1\n"),
            None,
            "the real root under another name"
        );
        assert_eq!(outside_root(""), None);
    }
}
