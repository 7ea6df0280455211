//! Guest memory that changes under running rings.

use std::time::Duration;

use rustix::fd::AsFd;
use vudev_frontend::message::{frame, request, words};
use vudev_frontend::requests::{region, single_region};
use vudev_frontend::{Buffer, FrontEnd, LIMIT, Outcome, RegionLayout, Step};

use crate::WIRE;
use crate::common::{Slow, Wire, mirror, mirror_at, serve, serve_mirror, share, unshare};

fn layout(front: &FrontEnd, number: usize) -> RegionLayout {
    front.memory().with_region(number, |layout, _| *layout)
}

#[test]
fn a_running_ring_sees_memory_that_is_added_and_misses_what_is_removed() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        mirror(&mut front, 0);

        let more = front.memory().add_region(0x3000).unwrap();
        let (there, back) = (
            front.memory().allocate_in(more, 16, 1).unwrap(),
            front.memory().allocate_in(more, 16, 1).unwrap(),
        );
        share(&mut front, more);
        mirror_at(&mut front, 0, there, back);

        let gone = layout(&front, more);
        unshare(&mut front, more);
        mirror(&mut front, 0);
        assert!(
            front
                .connection()
                .remove_memory_region(&gone, None)
                .is_err(),
            "removed twice"
        );

        // A chain that still points there costs the ring.
        front.ring(0).add(&[Buffer::new(there, 4)], &[]).unwrap();
        front.ring(0).kick().unwrap();
        front.ring(0).wait_error(LIMIT).unwrap();
    });
    served.assert_all_left();
}

#[test]
fn a_removal_closes_the_descriptor_that_came_with_it() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        let more = front.memory().add_region(0x1000).unwrap();
        share(&mut front, more);
        let gone = layout(&front, more);
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let sent = Some(write_end.as_fd());
        let removed = front.connection().remove_memory_region(&gone, sent);
        // A wire without slots refuses, and closes it as well.
        assert_eq!(removed.is_ok(), WIRE == Wire::Socket);
        drop(write_end);
        crate::common::assert_closed(read_end);
    });
    served.assert_all_left();
}

#[test]
fn a_region_need_not_be_whole_pages() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        let more = front.memory().add_region(0x1234).unwrap();
        share(&mut front, more);
        let there = front.memory().allocate_in(more, 4, 1).unwrap();
        let start = layout(&front, more).guest_address;
        mirror_at(&mut front, 0, there, start + 0x1234 - 4);
    });
    served.assert_all_left();
}

#[test]
fn a_table_takes_the_place_of_all_regions_under_a_running_ring() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        for _ in 0..3 {
            mirror(&mut front, 0);
            front.memory().add_region(0x1000).unwrap();
            front.take(Step::MemoryTable).unwrap();
        }
        mirror(&mut front, 0);
        assert_eq!(front.stop().unwrap(), [4]);
    });
    served.assert_all_left();
}

#[test]
fn a_ring_whose_own_memory_is_removed_is_retired_and_its_driver_told() {
    let served = serve_mirror(|path| {
        let mut front = FrontEnd::connect(path).start().unwrap();
        front.connection().set_acknowledge(true);
        mirror(&mut front, 0);
        unshare(&mut front, 0);
        front.ring(0).wait_error(LIMIT).unwrap();
        assert_eq!(front.stop().unwrap(), [1]);
    });
    served.assert_all_left();
}

/// Asks for the removal of the last region, and waits for no answer.
fn ask_to_unshare_the_last(front: &mut FrontEnd) {
    let memory = front.memory().clone();
    let connection = front.connection();
    let asked = memory.with_regions(|regions| {
        let ((gone, _), rest) = regions.split_last().unwrap();
        if WIRE == Wire::Socket {
            let message = frame(request::REM_MEM_REG, 0x9, &single_region(gone));
            return connection.raw(&message, &[]);
        }
        let mut payload = words(&[u32::try_from(rest.len()).unwrap(), 0]);
        let (layouts, files): (Vec<_>, Vec<_>) = rest.iter().copied().unzip();
        payload.extend(layouts.iter().flat_map(region));
        connection.raw(&frame(request::SET_MEM_TABLE, 0x9, &payload), &files)
    });
    asked.unwrap();
}

#[test]
fn a_removal_is_acknowledged_when_no_operation_holds_the_memory() {
    let (input, output) = rustix::pipe::pipe().unwrap();
    let served = serve(
        |handle| Slow::new(handle, input),
        move |path| {
            let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
            front.connection().set_acknowledge(true);
            let more = front.memory().add_region(0x1000).unwrap();
            share(&mut front, more);
            let buffer = front.memory().allocate_in(more, 8, 1).unwrap();
            front.ring(0).add(&[], &[Buffer::new(buffer, 8)]).unwrap();
            front.ring(0).kick().unwrap();
            // Ring 1 has answered, so ring 0 has taken its chain a turn ago.
            mirror(&mut front, 1);
            mirror(&mut front, 1);

            ask_to_unshare_the_last(&mut front);
            mirror(&mut front, 1);
            front.connection().set_limit(Duration::from_millis(50));
            assert!(
                front.connection().outcome().is_err(),
                "acknowledged while it was in use"
            );
            front.connection().set_limit(LIMIT);

            rustix::io::write(&output, b"finally!").unwrap();
            let outcome = front.connection().outcome().unwrap();
            assert!(matches!(outcome, Outcome::Answered(..)) && !outcome.is_refusal());
            assert_eq!(front.ring(0).wait_used(LIMIT).unwrap().written, 8);
            let mut bytes = [0; 8];
            front.memory().read(buffer, &mut bytes).unwrap();
            assert_eq!(&bytes, b"finally!");
        },
    );
    served.assert_all_left();
}
