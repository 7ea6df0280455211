//! What the host's side has seen, in lines, so that it can be said from one machine to another.

/// The checksums of the host's side.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Each line what was got and what was sent.
    pub(super) sockets: Vec<String>,
    /// What the port gave that is a socket.
    pub(super) door: String,
    /// And the one that is a file.
    pub(super) file: String,
    /// The disk's, by two ways.
    pub(super) disk_sum: String,
    pub(super) disk_md5: String,
    /// What came over the net, if there is one, and what was sent.
    pub(super) net: Option<(String, String)>,
}

impl Seen {
    /// One for each thing.
    pub fn to_lines(&self) -> String {
        let Self {
            sockets,
            door,
            file,
            disk_sum,
            disk_md5,
            net,
        } = self;
        let mut lines = vec![
            format!("seen door {door}"),
            format!("seen file {file}"),
            format!("seen disk-sum {disk_sum}"),
            format!("seen disk-md5 {disk_md5}"),
        ];
        lines.extend(sockets.iter().map(|sums| format!("seen socket {sums}")));
        if let Some((received, sent)) = net {
            lines.push(format!("seen received {received}"));
            lines.push(format!("seen sent {sent}"));
        }
        lines.join("\n")
    }

    /// From lines, among others.
    pub fn from_lines(lines: &str) -> Self {
        let all = |key: &str| -> Vec<String> {
            let prefix = format!("seen {key} ");
            let lines = lines.lines().filter_map(|line| line.strip_prefix(&prefix));
            lines.map(str::to_owned).collect()
        };
        let one = |key: &str| all(key).pop();
        let must = |key: &str| one(key).unwrap_or_else(|| panic!("no {key} in: {lines}"));
        Self {
            sockets: all("socket"),
            door: must("door"),
            file: must("file"),
            disk_sum: must("disk-sum"),
            disk_md5: must("disk-md5"),
            net: one("received").zip(one("sent")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_the_same_after_it_was_said() {
        let seen = Seen {
            sockets: vec!["1 2".into(), "3 4".into()],
            door: "d  -".into(),
            file: "f  -".into(),
            disk_sum: "5".into(),
            disk_md5: "m  -".into(),
            net: Some(("r  -".into(), "s  -".into())),
        };
        let said = format!("before\n{}\nafter\n", seen.to_lines());
        assert_eq!(Seen::from_lines(&said), seen);
        let none = Seen { net: None, ..seen };
        assert_eq!(Seen::from_lines(&none.to_lines()), none);
    }
}
