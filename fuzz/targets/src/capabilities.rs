//! The walk of PCI capabilities: sizes of bars, then a configuration space.

use vudev_transports::vvu::{BARS, CONFIGURATION_SIZE, Layout, Range, Window};

use crate::input::Input;

/// Windows that have fewer bytes are of no use: what a driver relies on, and how they are aligned.
const SHAPES: [(Window, u64, u64); 6] = [
    (Window::Common, 56, 4),
    (Window::Notify, 2, 2),
    (Window::Isr, 1, 1),
    (Window::Device, 24, 4),
    (Window::Doorbell, 2, 2),
    (Window::Notification, 4, 2),
];

pub(crate) fn walk(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut bars = [0; BARS];
    bars.fill_with(|| input.number());
    let configuration: [u8; CONFIGURATION_SIZE] = input.array();
    match Layout::parse(&configuration, &bars) {
        Ok(layout) => {
            for (window, least, align) in SHAPES {
                check(layout.window(window), least, align, &bars);
            }
            check(layout.shared_memory, 4096, 4096, &bars);
            for multiplier in [layout.notify_multiplier, layout.doorbell_multiplier] {
                assert!(multiplier == 0 || multiplier.is_power_of_two() && multiplier > 1);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check(range: Range, least: u64, align: u64, bars: &[u64; BARS]) {
    let Range { bar, offset, size } = range;
    let end = offset.checked_add(size).expect("an end");
    assert!(end <= bars[usize::from(bar)], "{range:?} of {bars:?}");
    assert!(size >= least && offset.is_multiple_of(align), "{range:?}");
}
