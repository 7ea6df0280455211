//! A mapped function whose bars are parts of a file: every access lands where the capabilities say.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::event::{EventfdFlags, eventfd};
use vudev_executor::Executor;
use vudev_transports::vvu::{
    CONFIGURATION_SIZE, DMA_ADDRESS, DMA_SIZE, Function, FunctionError, Layout, Listener,
    MappedFunction, MemoryPlacement, Parts, Width, Window,
};
use vudev_virtio::{GuestMemory, Region, RegionLayout};

/// Where bars 0 and 2 begin in the file.
const BARS: [u64; 6] = [0x10_0000, 0, 0x20_0000, 0, 0, 0];
const BAR_SIZES: [u64; 6] = [0x1000, 0, 0x4000, 0, 0, 0];

/// Everything in one page of bar 0 but doorbells and memory, which are in bar 2.
fn layout() -> Layout {
    let mut bytes = [0; CONFIGURATION_SIZE];
    (bytes[0x06], bytes[0x34]) = (0x10, 0x40);
    let capabilities: [[u32; 5]; 7] = [
        // Kind, bar, offset, size, multiplier.
        [1, 0, 0x100, 56, 0],
        [2, 0, 0x200, 8, 4],
        [3, 0, 0x301, 1, 0],
        [4, 0, 0x400, 24, 0],
        [6, 2, 0x10, 0x80, 2],
        [7, 0, 0x500, 4, 0],
        [8, 2, 0x1000, 0x3000, 0],
    ];
    for (number, [kind, bar, offset, size, multiplier]) in capabilities.into_iter().enumerate() {
        let at = 0x40 + 20 * number;
        let next = if number == 6 { 0 } else { at + 20 };
        let [kind, bar] = [kind, bar].map(|value| u8::try_from(value).unwrap());
        bytes[at..at + 5].copy_from_slice(&[9, u8::try_from(next).unwrap(), 20, kind, bar]);
        for (place, word) in [offset, size, multiplier].into_iter().enumerate() {
            let place = at + 8 + 4 * place;
            bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
    Layout::parse(&bytes, &BAR_SIZES).unwrap()
}

fn parts(device: &File) -> Parts {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DMA_SIZE).unwrap();
    let place = RegionLayout {
        guest_address: DMA_ADDRESS,
        user_address: DMA_ADDRESS,
        size: DMA_SIZE,
        offset: 0,
    };
    let dma = GuestMemory::new(vec![Region::map(place, file.into()).unwrap()]).unwrap();
    let vectors = (0..5).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    Parts {
        layout: layout(),
        device: device.try_clone().unwrap().into(),
        bars: BARS,
        vectors: vectors.collect(),
        dma: Rc::new(dma),
        keep: Vec::new(),
    }
}

fn device() -> File {
    let device = tempfile::tempfile().unwrap();
    device.set_len(0x30_0000).unwrap();
    device
}

#[test]
fn every_window_is_where_its_capability_says() {
    let device = device();
    let function = MappedFunction::new(parts(&device)).unwrap();
    for (window, place) in [
        (Window::Common, 0x10_0100),
        (Window::Notify, 0x10_0200),
        (Window::Isr, 0x10_0301),
        (Window::Device, 0x10_0400),
        (Window::Doorbell, 0x20_0010),
        (Window::Notification, 0x10_0500),
    ] {
        function.write(window, 0, Width::Byte, 0x5a);
        let mut byte = [0];
        device.read_exact_at(&mut byte, place).unwrap();
        assert_eq!(byte, [0x5a], "{window}");
        assert_eq!(function.read(window, 0, Width::Byte), 0x5a);
    }
    assert_eq!(function.vectors().len(), 5);
}

#[test]
fn shared_memory_is_a_part_of_its_bar_and_ends_with_its_window() {
    let device = device();
    let function = MappedFunction::new(parts(&device)).unwrap();
    let place = |at, size| {
        let found: Option<(Rc<OwnedFd>, u64)> = function.shared_memory(at, size);
        found.map(|(file, offset)| {
            assert_ne!(file.as_raw_fd(), device.as_raw_fd());
            offset
        })
    };
    assert_eq!(place(0, 0x3000), Some(0x20_1000));
    assert_eq!(place(0x2000, 0x1000), Some(0x20_3000));
    assert_eq!(place(0x2000, 0x1001), None);
    assert_eq!(place(u64::MAX, 2), None);
}

#[test]
fn registers_that_only_remember_are_no_device() {
    let device = device();
    let function = MappedFunction::new(parts(&device)).unwrap();
    let executor = Executor::with_operations(8).unwrap();
    let placement = MemoryPlacement::default();
    // For a device without queues: it says that it forwards none.
    let listener = Listener::new(executor.handle(), Rc::new(function), 0, placement).unwrap();
    let refused = executor.run(listener.accept()).unwrap();
    // Whatever it is asked for it says that it has no features.
    let error = refused.err().unwrap();
    let missing = matches!(error, FunctionError::FeatureMissing { .. });
    assert!(missing, "{error}");
}

#[test]
fn a_bar_that_cannot_be_mapped_is_named() {
    let (reading, _writing) = rustix::pipe::pipe().unwrap();
    let parts = Parts {
        device: reading,
        ..parts(&device())
    };
    let error = MappedFunction::new(parts).unwrap_err().to_string();
    assert!(error.contains("common configuration window"), "{error}");
}
