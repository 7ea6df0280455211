//! What a restricted ring promises: the ring's allow-list is half of a device's policy.

mod common;

use common::{disk, pipe};
use io_uring::opcode;
use vudev_executor::{Allowed, Bytes, Config, Executor, File, OPCODES, Ring, RingError};

/// `IOSQE_CQE_SKIP_SUCCESS`, which cancels carry.
const SKIP_SUCCESS: u8 = 1 << 6;

fn restricted(opcodes: &[u8], flags: u8) -> Executor {
    let executor = not_enabled(opcodes, flags);
    executor.enable().expect("enabled");
    executor
}

fn not_enabled(opcodes: &[u8], flags: u8) -> Executor {
    let config = Config {
        allowed: Some(Allowed {
            opcodes: opcodes.to_vec(),
            flags,
        }),
        ..Config::new(8)
    };
    Executor::new(Ring::new(&config).expect("a ring"))
}

#[test]
fn an_opcode_outside_the_list_is_refused_with_eacces() {
    let executor = restricted(&[opcode::Readv::CODE], 0);
    let file = File::new(executor.handle(), disk(b"data"));
    executor
        .run(async {
            let (read, bytes) = file.read_at(Bytes::zeroed(4), 0).await;
            assert_eq!(read.unwrap(), 4);
            let (written, _) = file.write_at(bytes, 0).await;
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EACCES));
            let synced = file.sync(true).await;
            assert_eq!(synced.unwrap_err().raw_os_error(), Some(libc::EACCES));
        })
        .unwrap();
}

#[test]
fn one_piece_is_a_plain_read_or_write_where_the_list_has_them() {
    let executor = restricted(&[opcode::Read::CODE, opcode::Write::CODE], 0);
    let file = File::new(executor.handle(), disk(b"data"));
    executor
        .run(async {
            let (read, mut bytes) = file.read_at(Bytes::zeroed(4), 0).await;
            assert_eq!((read.unwrap(), bytes.as_slice()), (4, &b"data"[..]));
            bytes.set_range(1..3);
            let (written, _) = file.write_at(bytes, 0).await;
            assert_eq!(written.unwrap(), 2);
            let (read, bytes) = file.read_at(Bytes::zeroed(4), 0).await;
            assert_eq!((read.unwrap(), bytes.as_slice()), (4, &b"atta"[..]));
        })
        .unwrap();
}

#[test]
fn registered_memory_goes_by_operations_of_its_own_that_take_no_other() {
    let fixed = [opcode::ReadFixed::CODE, opcode::WriteFixed::CODE];
    let executor = not_enabled(&fixed, 0);
    let memory = executor.handle().registered().unwrap();
    executor.enable().unwrap();
    let file = File::new(executor.handle(), disk(b"data"));
    executor
        .run(async {
            let mut bytes = memory.lend(100).unwrap();
            bytes.set_range(0..4);
            let (read, mut bytes) = file.read_at(bytes, 0).await;
            assert_eq!((read.unwrap(), bytes.as_slice()), (4, &b"data"[..]));
            bytes.set_range(1..3);
            let (written, _) = file.write_at(bytes, 0).await;
            assert_eq!(written.unwrap(), 2);
            let (read, _) = file.read_at(Bytes::zeroed(4), 0).await;
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EACCES));
            // A part that another ring has registered.
            let other = Executor::with_operations(1).unwrap();
            let foreign = other.handle().registered().unwrap();
            let (read, _) = file.read_at(foreign.lend(4).unwrap(), 0).await;
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        })
        .unwrap();
    // All who ask have the same.
    let again = executor.handle().registered().unwrap();
    assert!(memory.lend(64 << 10).is_some());
    let kept = memory.lend(128 << 10);
    assert!(kept.is_some() && again.lend(1).is_none());
}

#[test]
fn memory_is_registered_before_a_restricted_ring_is_enabled_or_never() {
    let refused = |executor: &Executor| executor.handle().registered().err().unwrap();
    let late = restricted(OPCODES, SKIP_SUCCESS);
    assert_eq!(refused(&late).raw_os_error(), Some(libc::EACCES));
    let unlisted = not_enabled(&[opcode::ReadFixed::CODE, opcode::Write::CODE], 0);
    assert_eq!(refused(&unlisted).raw_os_error(), Some(libc::EACCES));
}

#[test]
fn a_dropped_operation_keeps_its_registered_part_until_the_kernel_lets_go() {
    let executor = not_enabled(OPCODES, SKIP_SUCCESS);
    let handle = executor.handle();
    let memory = handle.registered().unwrap();
    executor.enable().unwrap();
    let (read_end, _write_end) = pipe();
    let file = File::new(handle, read_end);
    executor
        .run(async {
            let limit = std::time::Duration::from_millis(1);
            let read = file.read(memory.lend(128 << 10).unwrap());
            assert!(handle.timeout(limit, read).await.is_none());
            assert!(memory.lend(1).is_none());
            while handle.stats().in_flight > 0 {
                handle.yield_now().await;
            }
            assert!(memory.lend(128 << 10).is_some());
        })
        .unwrap();
}

#[test]
fn the_executor_lives_with_its_own_opcodes_and_one_flag() {
    let executor = restricted(OPCODES, SKIP_SUCCESS);
    let handle = executor.handle();
    let (read_end, _write_end) = pipe();
    let file = File::new(handle, read_end);
    executor
        .run(async {
            let limit = std::time::Duration::from_millis(1);
            assert!(
                handle
                    .timeout(limit, file.read(Bytes::zeroed(1)))
                    .await
                    .is_none()
            );
            while handle.stats().in_flight > 0 {
                handle.yield_now().await;
            }
        })
        .unwrap();
}

#[test]
fn a_ring_that_is_not_enabled_says_so() {
    let executor = Executor::new(Ring::new(&Config::new(8)).unwrap());
    let file = File::new(executor.handle(), disk(b"data"));
    let error = executor
        .run(file.read_at(Bytes::zeroed(4), 0))
        .err()
        .unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
}

#[test]
fn more_operations_than_a_ring_can_have_are_refused() {
    assert!(matches!(
        Ring::new(&Config::new(u32::MAX)),
        Err(RingError::TooMany { slots: u32::MAX })
    ));
}
