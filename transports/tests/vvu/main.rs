//! The tests of `vhost_user`, the same code, over a virtio-vhost-user function in software: equal
//! in number, and in result but for what is here. No descriptor gets past the function. It keeps
//! memory, kicks and calls to itself, and has one answer to a front-end: to end its connection.
//!
//! |   | what | over the socket | over a function |
//! |---|---|---|---|
//! | 1 | regions one by one | 509 slots | refused; a table of all instead |
//! | 2 | a front-end that must have slots | is served | goes when it sees the offer |
//! | 3 | a message that cannot be followed | an error names it | the front-end has left |
//! | 4 | no eventfd, none at all, or a descriptor too many | refused | connection ended |
//! | 5 | memory that is no file, or a shorter one | refused | connection ended |
//! | 6 | a back-end channel that is no socket | refused | connection ended |
//! | 7 | a call that cannot be signalled | its ring is retired | unnoticed: a store |
//!
//! 1. `CONFIGURE_MEM_SLOTS` is not offered, for a region's place in the bar follows from those
//!    before it: all of `memory`, `protocol_features_that_nobody_offered_are_ignored`,
//!    `every_request_is_acknowledged_once_when_asked`,
//!    `a_ring_waits_for_the_region_that_it_lies_in`,
//!    `the_messages_of_a_start_may_come_in_any_order`,
//!    `the_front_end_of_crate_vhost_is_content_with_every_answer`.
//! 2. `the_front_end_of_crate_virtio_driver_is_content_with_every_answer`.
//! 3. `a_message_that_ends_too_early_ends_the_connection`,
//!    `an_oversized_message_ends_the_connection_before_it_is_read`,
//!    `more_descriptors_than_a_message_may_carry_end_the_connection`,
//!    `descriptors_spread_over_a_message_count_together`.
//! 4. `pipes_and_files_are_no_kicks_calls_or_errors`,
//!    `what_is_refused_with_a_word_leaves_the_connection_alone`,
//!    `descriptors_where_none_belong_are_closed`.
//! 5. `memory_that_is_not_what_it_says_is_refused`.
//! 6. `a_backend_channel_that_is_no_socket_or_was_not_agreed_upon_is_refused`.
//! 7. `a_call_eventfd_that_is_full_costs_the_ring_and_nothing_else`.
//!
//! But for the last of 4 these are all that look at `WIRE`. In `devices.rs` none does: what a
//! device does is the same. Log, in-flight buffers and post-copy are no row: no wire of ours offers
//! them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

#[path = "../vhost_user/hostile.rs"]
mod hostile;
#[path = "../vhost_user/lawful.rs"]
mod lawful;
#[path = "../vhost_user/memory.rs"]
mod memory;
#[path = "../vhost_user/oracle.rs"]
mod oracle;

/// What the tests of this binary run over.
const WIRE: common::Wire = common::Wire::Vvu;
