//! What the supervisor promises about its devices' lives and its own end. Each test is a `vudev`
//! of its own, under its real policies.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use support::{LIMIT, Setting, kill, pidfd, wait_for_end};
use vudev_frontend::{Block, FrontEnd};
use vudev_harness::Terminal;

#[test]
fn a_stop_ends_all_devices_with_status_0_and_removes_the_sockets() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut running = Setting::new()?
            .serial("type=sink")
            .block()?
            .block()?
            .start()?;
        let devices = running
            .devices()?
            .into_iter()
            .map(pidfd)
            .collect::<Result<Vec<_>>>()?;
        assert_eq!(running.sockets()?.len(), 3);
        let asked = Instant::now();
        running.child.signal(signal)?;
        assert_eq!(running.child.wait(LIMIT)?.code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(2));
        assert!(running.sockets()?.is_empty());
        devices.iter().try_for_each(wait_for_end)?;
    }
    Ok(())
}

#[test]
fn a_stop_during_requests_finishes_them_and_ends_in_time() -> Result<()> {
    let mut running = Setting::new()?.block()?.start()?;
    let mut disk = Block::start(FrontEnd::connect(running.path("block-0")), 32, 4096)?;
    for number in 0..16 {
        let _ = disk.send_read(0, number * 4096, 4096)?;
    }
    disk.kick(0)?;
    let asked = Instant::now();
    assert_eq!(running.stop()?, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert!(running.sockets()?.is_empty());
    Ok(())
}

#[test]
fn a_killed_device_is_named_and_the_others_go_on() -> Result<()> {
    let mut running = Setting::new()?.block()?.block()?.start()?;
    let mut disk = Block::start(FrontEnd::connect(running.path("block-1")), 4, 4096)?;
    kill(running.devices()?[0], Signal::KILL)?;
    running
        .log
        .until("block-0: error: has died: killed by signal SIGKILL", LIMIT)?;
    disk.write(0, &[7; 4096])?;
    let mut read = [0; 4096];
    disk.read(0, &mut read)?;
    assert_eq!(read, [7; 4096]);
    assert_eq!(running.stop()?, Some(1));
    Ok(())
}

#[test]
fn the_sockets_of_a_dead_device_go_with_it_and_the_others_stay() -> Result<()> {
    let setting = Setting::new()?;
    let vsock = format!(
        "cid=3,uds-path={},vhost={}",
        setting.path("uds").display(),
        setting.path("vsock").display()
    );
    let setting = setting.argument("--vsock").argument(&vsock);
    let mut running = setting.serial("type=sink").block()?.start()?;
    assert_eq!(running.sockets()?.len(), 4);
    // In the order of the command line: the socket device, which listens on one of its own too.
    kill(running.devices()?[0], Signal::KILL)?;
    running.log.until("vsock-0: error: has died", LIMIT)?;
    let mut left = running.sockets()?;
    left.sort();
    assert_eq!(left, [running.path("block-0"), running.path("serial-0")]);
    // What has taken the place of the other meanwhile is not ours to remove.
    fs::write(running.path("vsock"), "a user's file")?;
    assert_eq!(running.stop()?, Some(1));
    assert!(running.sockets()?.is_empty());
    assert!(running.path("vsock").exists());
    Ok(())
}

#[test]
fn a_second_signal_ends_the_wait_for_a_frozen_device_and_is_named() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").start()?;
    kill(running.devices()?[0], Signal::STOP)?;
    running.child.signal(Signal::TERM)?;
    running.log.until("SIGTERM: stopping", LIMIT)?;
    // Again and again, for what comes at once is taken for the first one.
    let text = "did not end in time and was killed at the second signal (";
    let named = (0..20).any(|_| {
        let sent = running.child.signal(Signal::INT);
        sent.is_ok() && running.log.until(text, Duration::from_millis(50)).is_ok()
    });
    assert!(named);
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(1));
    Ok(())
}

#[test]
fn a_signal_that_comes_twice_at_once_kills_nobody() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").block()?.start()?;
    running.child.signal(Signal::TERM)?;
    running.log.until("SIGTERM: stopping", LIMIT)?;
    running.child.signal(Signal::TERM)?;
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(0));
    Ok(())
}

#[test]
fn the_end_of_the_last_device_is_the_end_of_the_command() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").start()?;
    kill(running.devices()?[0], Signal::KILL)?;
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(1));
    assert!(running.sockets()?.is_empty());
    Ok(())
}

#[test]
fn a_device_that_somebody_stops_behind_our_back_is_not_as_asked() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").start()?;
    kill(running.devices()?[0], Signal::TERM)?;
    running
        .log
        .until("serial-0: error: has ended without being asked", LIMIT)?;
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(1));
    Ok(())
}

#[test]
fn no_device_survives_a_killed_supervisor() -> Result<()> {
    let running = Setting::new()?.serial("type=sink").block()?.start()?;
    let devices = running
        .devices()?
        .into_iter()
        .map(pidfd)
        .collect::<Result<Vec<_>>>()?;
    assert_eq!(devices.len(), 2);
    running.child.signal(Signal::KILL)?;
    devices.iter().try_for_each(wait_for_end)
}

#[test]
fn a_frozen_device_is_killed_at_the_deadline_and_named() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").block()?.start()?;
    kill(running.devices()?[0], Signal::STOP)?;
    let asked = Instant::now();
    running.child.signal(Signal::TERM)?;
    let text = "serial-0: error: did not end in time and was killed 1500 ms after the stop (";
    running.log.until(text, LIMIT)?;
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(2));
    Ok(())
}

#[test]
fn a_stuck_reader_of_the_log_stalls_neither_guests_nor_the_stop() -> Result<()> {
    let (_nobody_reads, mut errors) = std::io::pipe()?;
    // Full to the last byte, so that not one line of ours finds room.
    rustix::fs::fcntl_setfl(&errors, rustix::fs::OFlags::NONBLOCK)?;
    while errors.write(&[b'x'; 4096]).is_ok() {}
    while errors.write(b"x").is_ok() {}
    rustix::fs::fcntl_setfl(&errors, rustix::fs::OFlags::empty())?;

    let setting = Setting::new()?.block()?;
    let socket = setting.path("block-0");
    let (mut child, folder) = setting.start_with(errors)?;
    vudev_harness::wait_until_listening(&socket, &mut child, LIMIT)?;
    // Each connection is a log line or two.
    for _ in 0..20 {
        let mut disk = Block::start(FrontEnd::connect(&socket), 4, 4096)?;
        disk.write(4096, &[9; 4096])?;
    }
    let asked = Instant::now();
    child.signal(Signal::TERM)?;
    assert_eq!(child.wait(LIMIT)?.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert!(!socket.exists());
    drop(folder);
    Ok(())
}

#[test]
fn a_stopped_terminal_stalls_neither_guests_nor_the_stop() -> Result<()> {
    // Nobody reads its other end: it takes a few KiB.
    let terminal = Terminal::open()?;
    let setting = Setting::new()?.block()?;
    let socket = setting.path("block-0");
    let (mut child, folder) = setting.start_with(terminal.program_end()?)?;
    vudev_harness::wait_until_listening(&socket, &mut child, LIMIT)?;
    for _ in 0..200 {
        let mut disk = Block::start(FrontEnd::connect(&socket), 4, 4096)?;
        disk.write(4096, &[9; 4096])?;
    }
    let asked = Instant::now();
    child.signal(Signal::TERM)?;
    assert_eq!(child.wait(LIMIT)?.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert!(!socket.exists());
    drop(folder);
    Ok(())
}

#[test]
fn the_terminal_is_raw_while_devices_run_and_restored_afterwards() -> Result<()> {
    for status in [0, 1] {
        let terminal = Terminal::open()?;
        assert!(terminal.echoes()?);
        let setting = Setting::new()?.stdin(terminal.program_end()?);
        let mut running = setting.serial("type=sink,stdin").start()?;
        assert!(!terminal.echoes()?);
        match status {
            0 => running.child.signal(Signal::QUIT)?,
            _ => kill(running.devices()?[0], Signal::KILL)?,
        }
        assert_eq!(running.child.wait(LIMIT)?.code(), Some(status));
        assert!(terminal.echoes()?);
    }
    Ok(())
}

#[test]
fn a_front_end_that_leaves_makes_room_for_the_next() -> Result<()> {
    let mut running = Setting::new()?.block()?.start()?;
    for round in 0..10_u8 {
        let mut disk = Block::start(FrontEnd::connect(running.path("block-0")), 4, 512)?;
        let mut read = [0; 512];
        disk.read(0, &mut read)?;
        assert_eq!(read, [round; 512]);
        disk.write(0, &[round + 1; 512])?;
        match round % 2 {
            0 => drop(disk.into_front().leave()?),
            _ => drop(disk.into_front().vanish()?),
        }
    }
    assert_eq!(running.stop()?, Some(0));
    Ok(())
}

/// Policies of an operator's, in the flat form that crosvm's `seccomp-policy-dir` has: the
/// project's own for disks, and for consoles one that does not even let them say that they are
/// ready. Only their owner can read them.
fn policies(setting: &Setting) -> Result<()> {
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../seccomp");
    let folder = setting.path("policies");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    for kind in ["block", "serial"] {
        let name = format!("{kind}_device_vhost_user");
        let arch = std::env::consts::ARCH;
        let policy = match kind {
            "block" => format!("@include {ours}/{arch}/{name}.policy\n"),
            // Their greeting is longer than nothing, and so is the report that it was forbidden.
            _ => {
                "io_uring_enter: 1\nsendto: arg2 == 0\nexit_group: 1\nrt_sigreturn: 1\n".to_owned()
            }
        };
        fs::write(folder.join(format!("{name}.policy")), policy)?;
        let ring = format!("@include {ours}/ring/{name}.ring\n");
        fs::write(folder.join(format!("{name}.ring")), ring)?;
    }
    Ok(())
}

#[test]
fn an_operators_policies_are_used_though_the_device_cannot_read_them() -> Result<()> {
    let setting = Setting::new()?;
    policies(&setting)?;
    let jail = format!("seccomp-policy-dir={}", setting.path("policies").display());
    let mut running = setting
        .argument("--jail")
        .argument(&jail)
        .block()?
        .start()?;
    let mut disk = Block::start(FrontEnd::connect(running.path("block-0")), 4, 512)?;
    disk.write(0, &[1; 512])?;
    assert_eq!(running.stop()?, Some(0));
    Ok(())
}

#[test]
fn a_device_that_cannot_start_is_named_and_the_others_are_stopped() -> Result<()> {
    let setting = Setting::new()?;
    policies(&setting)?;
    let jail = format!("seccomp-policy-dir={}", setting.path("policies").display());
    let setting = setting
        .argument("--jail")
        .argument(&jail)
        .block()?
        .serial("type=sink");
    let (lines, errors) = rustix::pipe::pipe()?;
    let (mut child, folder) = setting.start_with(errors)?;
    let mut log = vudev_harness::Lines::new(lines);
    log.until("serial-0: error: has died: killed by signal SIGSYS", LIMIT)?;
    log.until("block-0: info: has ended", LIMIT)?;
    assert_eq!(child.wait(LIMIT)?.code(), Some(1));
    assert!(!folder.path().join("block-0").exists());
    assert!(!folder.path().join("serial-0").exists());
    Ok(())
}

#[test]
fn ignored_signals_of_whoever_starts_it_change_only_what_they_should() -> Result<()> {
    let setting = Setting::new()?.after("trap '' CHLD HUP");
    let mut running = setting.serial("type=sink").start()?;
    // As under nohup; a stop that were begun here would be seen by the next signal's log line.
    running.child.signal(Signal::HUP)?;
    running.child.signal(Signal::TERM)?;
    let line = running.log.until("stopping", LIMIT)?;
    assert_eq!(line, "vudev: info: SIGTERM: stopping");
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_background_job_of_a_script_is_stopped_by_an_interrupt_all_the_same() -> Result<()> {
    let setting = Setting::new()?.after("trap '' INT QUIT");
    let mut running = setting.serial("type=sink").start()?;
    running.child.signal(Signal::QUIT)?;
    running.child.signal(Signal::INT)?;
    let line = running.log.until("stopping", LIMIT)?;
    assert_eq!(line, "vudev: info: SIGINT: stopping");
    assert_eq!(running.child.wait(LIMIT)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_soft_limit_that_is_too_low_for_a_device_is_raised() -> Result<()> {
    let setting = Setting::new()?.after("ulimit -S -l 64; ulimit -S -n 12");
    let mut running = setting.block()?.block()?.start()?;
    // The device itself has no use for it, once its ring is there.
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.devices()?[0]))?;
    let locked = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"));
    let locked: Vec<_> = locked.unwrap_or_default().split_whitespace().collect();
    assert_eq!(locked, ["0", "0", "bytes"]);
    assert_eq!(running.stop()?, Some(0));
    Ok(())
}

#[test]
fn a_replaced_socket_is_not_ours_to_remove() -> Result<()> {
    let mut running = Setting::new()?.serial("type=sink").start()?;
    let place = running.path("serial-0");
    fs::remove_file(&place)?;
    fs::write(&place, "a user's file")?;
    assert_eq!(running.stop()?, Some(0));
    assert_eq!(fs::read_to_string(&place)?, "a user's file");
    Ok(())
}

#[test]
fn without_the_sandbox_the_same_is_true_and_said_loudly() -> Result<()> {
    let setting = Setting::new()?.argument("--disable-sandbox").block()?;
    let (lines, errors) = rustix::pipe::pipe()?;
    let socket = setting.path("block-0");
    let (child, _folder) = setting.start_with(errors)?;
    let mut log = vudev_harness::Lines::new(lines);
    log.until(
        "warning: --disable-sandbox: the devices run WITHOUT A JAIL",
        LIMIT,
    )?;
    log.until("1 device is ready", LIMIT)?;
    let mut disk = Block::start(FrontEnd::connect(&socket), 4, 512)?;
    disk.write(0, &[1; 512])?;
    disk.flush()?;
    let devices = support::children_of(child.id())?;
    let device = pidfd(devices[0])?;
    child.signal(Signal::KILL)?;
    wait_for_end(&device)
}
