//! Sockets: what is bound, what is refused, and that nothing foreign is removed.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{Claim, Listening};
use crate::options::{FRONT_ENDS, Table, VHOST, Values, quote};

static PORT: Table = Table {
    device: "port",
    about: "a port for tests",
    keys: &[],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "vhost=/tmp/vu-port",
};

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn listen(&self, name: &str) -> Result<Listening, String> {
        let values = port(&self.path(name));
        let listening = Claim::check(&values, VHOST.name).and_then(Claim::bind);
        listening.map_err(|error| error.to_string())
    }

    /// The error without the directory's name, which is another one each time.
    fn refusal(&self, name: &str) -> String {
        let error = self.listen(name).expect_err("refused");
        error.replace(self.directory.path().to_str().expect("UTF-8"), "DIR")
    }
}

fn port(path: &Path) -> Values {
    let argument = format!("vhost={}", quote(path.to_str().expect("UTF-8")));
    Values::parse(&PORT, &argument).expect("good")
}

#[test]
fn a_bound_socket_takes_connections_of_its_owner_only_and_is_removed_at_the_end() {
    let scene = Scene::new();
    let listening = scene.listen("s").expect("bound");
    let mode = scene
        .path("s")
        .symlink_metadata()
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    UnixStream::connect(scene.path("s")).expect("connects");
    drop(listening);
    assert!(!scene.path("s").exists());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let scene = Scene::new();
    drop(UnixListener::bind(scene.path("s")).expect("bound"));
    assert!(scene.path("s").exists());
    let _listening = scene.listen("s").expect("bound");
    UnixStream::connect(scene.path("s")).expect("connects");
}

#[test]
fn a_check_alone_changes_nothing() {
    let scene = Scene::new();
    drop(UnixListener::bind(scene.path("stale")).expect("bound"));
    let (stale, new) = (port(&scene.path("stale")), port(&scene.path("new")));
    Claim::check(&stale, VHOST.name).expect("free");
    Claim::check(&new, VHOST.name).expect("free");
    assert!(scene.path("stale").exists() && !scene.path("new").exists());
}

#[test]
fn a_socket_that_somebody_listens_on_is_refused_and_lives() {
    let scene = Scene::new();
    let listener = UnixListener::bind(scene.path("s")).expect("bound");
    assert_eq!(
        scene.refusal("s"),
        "--port: vhost: column 7: another process listens on \"DIR/s\": \
         use another path, or end that process"
    );
    UnixStream::connect(scene.path("s")).expect("connects");
    drop(listener);
}

#[test]
fn a_socket_of_another_type_in_use_is_refused() {
    let scene = Scene::new();
    let _datagram = UnixDatagram::bind(scene.path("s")).expect("bound");
    assert!(scene.refusal("s").contains("another process listens"));
    assert!(scene.path("s").exists());
}

#[test]
fn a_socket_taken_between_check_and_bind_is_not_removed() {
    let scene = Scene::new();
    drop(UnixListener::bind(scene.path("s")).expect("bound"));
    let values = port(&scene.path("s"));
    let claim = Claim::check(&values, VHOST.name).expect("stale");
    std::fs::remove_file(scene.path("s")).expect("removed");
    let _other = UnixListener::bind(scene.path("s")).expect("bound");
    claim.bind().expect_err("taken");
    UnixStream::connect(scene.path("s")).expect("the other one still listens");

    let values = port(&scene.path("t"));
    let claim = Claim::check(&values, VHOST.name).expect("free");
    std::fs::write(scene.path("t"), "mine").expect("written");
    let error = claim.bind().expect_err("taken").to_string();
    assert!(
        error.contains("has been taken, by this command or another process"),
        "{error}"
    );
    assert_eq!(std::fs::read(scene.path("t")).expect("there"), b"mine");
}

#[test]
fn what_is_not_a_socket_is_refused_and_stays() {
    let scene = Scene::new();
    let mut file = std::fs::File::create(scene.path("file")).expect("made");
    file.write_all(b"data").expect("written");
    std::fs::create_dir(scene.path("dir")).expect("made");
    symlink("nowhere", scene.path("link")).expect("made");
    for (name, what) in [
        ("file", "a regular file"),
        ("dir", "a directory"),
        ("link", "a symbolic link"),
    ] {
        assert_eq!(
            scene.refusal(name),
            format!(
                "--port: vhost: column 7: \"DIR/{name}\" is {what} and not a socket: \
                 use another path; nothing has been removed"
            )
        );
        assert!(scene.path(name).symlink_metadata().is_ok());
    }
    assert_eq!(std::fs::read(scene.path("file")).expect("there"), b"data");
}

#[test]
fn a_missing_directory_is_named() {
    let scene = Scene::new();
    std::fs::write(scene.path("file"), "").expect("written");
    assert_eq!(
        scene.refusal("no/s"),
        "--port: vhost: column 7: there is no directory \"DIR/no/\": make it, or use another path"
    );
    assert_eq!(
        scene.refusal("file/s"),
        "--port: vhost: column 7: \"DIR/file/\" is not a directory: use another path"
    );
    assert_eq!(
        scene.refusal("s/"),
        "--port: vhost: column 7: \"DIR/s/\" names a directory: write the path of a socket in it"
    );
    symlink("loop", scene.path("loop")).expect("made");
    assert_eq!(
        scene.refusal("loop/s"),
        "--port: vhost: column 7: cannot enter the directory \"DIR/loop/\": \
         Too many levels of symbolic links: use another path"
    );
}

#[test]
fn a_path_longer_than_an_address_is_refused_and_the_longest_is_not() {
    let scene = Scene::new();
    let room = 107 - scene.path("").as_os_str().len();
    let _listening = scene.listen(&"x".repeat(room)).expect("bound");
    assert!(
        scene
            .refusal(&"x".repeat(room + 1))
            .contains("has 108 bytes, more than 107: ")
    );
}

#[test]
fn what_has_replaced_our_socket_is_not_removed() {
    let scene = Scene::new();
    let listening = scene.listen("s").expect("bound");
    std::fs::remove_file(scene.path("s")).expect("removed");
    let _other = UnixListener::bind(scene.path("s")).expect("bound");
    drop(listening);
    UnixStream::connect(scene.path("s")).expect("the other one still listens");

    let listening = scene.listen("t").expect("bound");
    std::fs::remove_file(scene.path("t")).expect("removed");
    std::fs::write(scene.path("t"), "mine").expect("written");
    drop(listening);
    assert_eq!(std::fs::read(scene.path("t")).expect("there"), b"mine");
}

#[test]
fn a_socket_is_removed_from_its_directory_wherever_that_has_gone() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("a")).expect("made");
    let listening = scene.listen("a/s").expect("bound");
    std::fs::rename(scene.path("a"), scene.path("b")).expect("renamed");
    drop(listening);
    assert!(!scene.path("b/s").exists());
}
