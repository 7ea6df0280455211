//! From a function that was opened to one that works: reset, features, vectors and queues, each
//! read back (virtio 1.3, 3.1.1 and 4.1.5). Done anew for every session, so that nothing of the
//! last one is left. Not the session.

use std::rc::Rc;
use std::time::Duration;

use vudev_executor::Handle;

use super::capabilities::Window;
use super::error::FunctionError;
use super::function::{Function, Register, Width};
use super::rings::{Place, QUEUE_SIZE, RECEIVE, Ring, TRANSMIT};

/// Which vector tells of what. Kicks have the rest.
pub(super) const RECEIVE_VECTOR: u16 = 0;
pub(super) const TRANSMIT_VECTOR: u16 = 1;
pub(super) const CONFIG_VECTOR: u16 = 2;
const FIRST_KICK_VECTOR: u16 = 3;

/// Fewest vectors: one for kicks, at worst of all queues together.
pub(super) const VECTORS_MIN: u16 = FIRST_KICK_VECTOR + 1;

/// Most vectors that a device of so many queues uses.
pub(super) fn vectors_max(queues: u16) -> u16 {
    VECTORS_MIN.max(FIRST_KICK_VECTOR.saturating_add(queues))
}

/// How long a reset may take: the other side has connections to close.
const RESET_LIMIT: Duration = Duration::from_secs(5);
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// `struct virtio_pci_common_cfg` (4.1.4.3).
mod common {
    use super::{Register, Width, Window};

    const fn at(offset: u64, width: Width) -> Register {
        Register::fixed(Window::Common, offset, width)
    }

    pub(super) const DEVICE_FEATURE_SELECT: Register = at(0, Width::Double);
    pub(super) const DEVICE_FEATURE: Register = at(4, Width::Double);
    pub(super) const DRIVER_FEATURE_SELECT: Register = at(8, Width::Double);
    pub(super) const DRIVER_FEATURE: Register = at(12, Width::Double);
    pub(super) const CONFIG_MSIX_VECTOR: Register = at(16, Width::Word);
    pub(super) const NUM_QUEUES: Register = at(18, Width::Word);
    pub(super) const DEVICE_STATUS: Register = at(20, Width::Byte);
    pub(super) const QUEUE_SELECT: Register = at(22, Width::Word);
    pub(super) const QUEUE_SIZE: Register = at(24, Width::Word);
    pub(super) const QUEUE_MSIX_VECTOR: Register = at(26, Width::Word);
    pub(super) const QUEUE_ENABLE: Register = at(28, Width::Word);
    pub(super) const QUEUE_NOTIFY_OFF: Register = at(30, Width::Word);
    /// Descriptor table, driver area, device area: lower and upper halves.
    pub(super) const QUEUE_ADDRESSES: [[Register; 2]; 3] = [
        [at(32, Width::Double), at(36, Width::Double)],
        [at(40, Width::Double), at(44, Width::Double)],
        [at(48, Width::Double), at(52, Width::Double)],
    ];
}

/// Bits of the device status (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const DEVICE_NEEDS_RESET: u32 = 64;

/// Bits 32 and 33 of the features, in their upper half.
const VERSION_1: u32 = 1 << 0;
const ACCESS_PLATFORM: u32 = 1 << 1;

/// The device's configuration (VVU: `struct virtio_vhost_user_config`).
pub(super) const STATUS: Register = Register::fixed(Window::Device, 0, Width::Double);
const MAX_VHOST_QUEUES: Register = Register::fixed(Window::Device, 4, Width::Double);

/// VVU: `struct virtio_pci_notification_cfg`.
const NOTIFICATION_SELECT: Register = Register::fixed(Window::Notification, 0, Width::Word);
const NOTIFICATION_MSIX_VECTOR: Register = Register::fixed(Window::Notification, 2, Width::Word);

/// A queue and the register that notifies the function of it.
pub(super) struct Queue {
    pub(super) ring: Ring,
    pub(super) notify: Register,
}

/// What a function is once it works.
pub(super) struct Working {
    pub(super) receive: Queue,
    pub(super) transmit: Queue,
    /// Doorbells of calls, and as many behind them of errors.
    pub(super) vhost_queues: u32,
}

/// The vector of a queue's kicks. With too few of them queues share.
pub(super) fn kick_vector(queue: u16, vectors: u16) -> u16 {
    debug_assert!(vectors >= VECTORS_MIN);
    FIRST_KICK_VECTOR + queue % (vectors - FIRST_KICK_VECTOR)
}

/// Sets a function up for a device of `queues` queues.
pub(super) async fn set_up(
    handle: &Handle,
    function: &Rc<dyn Function>,
    queues: u16,
    vectors: u16,
) -> Result<Working, FunctionError> {
    reset(handle, &**function).await?;
    let function = &**function;
    let mut status = ACKNOWLEDGE | DRIVER;
    common::DEVICE_STATUS.write(function, status);
    negotiate(function)?;
    status |= FEATURES_OK;
    common::DEVICE_STATUS.write(function, status);
    if common::DEVICE_STATUS.read(function) & FEATURES_OK == 0 {
        return Err(FunctionError::FeaturesRefused);
    }
    let vhost_queues = check_queues(function, queues)?;
    set_vector(
        function,
        common::CONFIG_MSIX_VECTOR,
        CONFIG_VECTOR,
        "changes of its configuration",
    )?;
    let receive = set_up_queue(function, (0, RECEIVE_VECTOR), RECEIVE)?;
    let transmit = set_up_queue(function, (1, TRANSMIT_VECTOR), TRANSMIT)?;
    for queue in 0..queues {
        NOTIFICATION_SELECT.write(function, queue.into());
        let vector = kick_vector(queue, vectors);
        set_vector(function, NOTIFICATION_MSIX_VECTOR, vector, "kicks")?;
    }
    common::DEVICE_STATUS.write(function, status | DRIVER_OK);
    check_status(function)?;
    Ok(Working {
        receive,
        transmit,
        vhost_queues,
    })
}

/// How many queues the function forwards: not fewer than a device has. It may be asked at any time
/// (3.1.1, step 4).
pub(super) fn check_queues(function: &dyn Function, queues: u16) -> Result<u32, FunctionError> {
    let actual = MAX_VHOST_QUEUES.read(function);
    if actual < u32::from(queues) {
        return Err(FunctionError::Queues {
            actual,
            wanted: queues,
        });
    }
    Ok(actual)
}

/// Whether the function still works (2.1.2: DEVICE_NEEDS_RESET).
pub(super) fn check_status(function: &dyn Function) -> Result<(), FunctionError> {
    if common::DEVICE_STATUS.read(function) & DEVICE_NEEDS_RESET != 0 {
        return Err(FunctionError::NeedsReset);
    }
    Ok(())
}

/// Resets it and waits for that to be done (4.1.4.3.2: until the status reads 0).
async fn reset(handle: &Handle, function: &dyn Function) -> Result<(), FunctionError> {
    common::DEVICE_STATUS.write(function, 0);
    let done = async {
        while common::DEVICE_STATUS.read(function) != 0 {
            handle.sleep(RESET_INTERVAL).await;
        }
    };
    let limit = RESET_LIMIT;
    let done = handle.timeout(limit, done).await;
    done.ok_or(FunctionError::NoReset { limit })
}

fn negotiate(function: &dyn Function) -> Result<(), FunctionError> {
    common::DEVICE_FEATURE_SELECT.write(function, 1);
    let offered = common::DEVICE_FEATURE.read(function);
    for (bit, name, remedy) in [
        (
            VERSION_1,
            "VIRTIO_F_VERSION_1",
            "legacy devices are not driven",
        ),
        // Without it the device would take our addresses for physical ones and write anywhere.
        (
            ACCESS_PLATFORM,
            "VIRTIO_F_ACCESS_PLATFORM",
            "its other side must let it be behind an IOMMU (iommu_platform=on)",
        ),
    ] {
        if offered & bit == 0 {
            return Err(FunctionError::FeatureMissing { name, remedy });
        }
    }
    for (half, features) in [(0, 0), (1, VERSION_1 | ACCESS_PLATFORM)] {
        common::DRIVER_FEATURE_SELECT.write(function, half);
        common::DRIVER_FEATURE.write(function, features);
    }
    Ok(())
}

/// Sets a vector; a device that cannot have it says so by another value (4.1.5.1.2).
fn set_vector(
    function: &dyn Function,
    register: Register,
    vector: u16,
    what: &'static str,
) -> Result<(), FunctionError> {
    register.write(function, vector.into());
    if register.read(function) == u32::from(vector) {
        Ok(())
    } else {
        Err(FunctionError::VectorRefused { vector, what })
    }
}

fn set_up_queue(
    function: &dyn Function,
    (index, vector): (u16, u16),
    place: Place,
) -> Result<Queue, FunctionError> {
    let missing = FunctionError::QueueMissing(index);
    if common::NUM_QUEUES.read(function) <= u32::from(index) {
        return Err(missing);
    }
    common::QUEUE_SELECT.write(function, index.into());
    let max = common::QUEUE_SIZE.read(function);
    let most = u16::try_from(max).unwrap_or(QUEUE_SIZE).min(QUEUE_SIZE);
    // The greatest power of two that both sides have room for.
    let Some(size) = most.checked_ilog2().map(|bits| 1 << bits) else {
        return Err(missing);
    };
    common::QUEUE_SIZE.write(function, u32::from(size));
    set_vector(function, common::QUEUE_MSIX_VECTOR, vector, "a virtqueue")?;

    let ring = Ring::new(function.dma(), place, size)?;
    let addresses = ring.addresses();
    let parts = [addresses.descriptors, addresses.available, addresses.used];
    for ([low, high], address) in common::QUEUE_ADDRESSES.into_iter().zip(parts) {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        low.write(function, u32::from_le_bytes([a, b, c, d]));
        high.write(function, u32::from_le_bytes([e, f, g, h]));
    }
    // "cap.offset + queue_notify_off * notify_off_multiplier" (4.1.4.4)
    let offset = common::QUEUE_NOTIFY_OFF.read(function) & 0xffff;
    let multiplier = function.layout().notify_multiplier;
    let at = u64::from(offset) * u64::from(multiplier);
    let notify = Register::new(function.layout(), Window::Notify, at, Width::Word)?;
    common::QUEUE_ENABLE.write(function, 1);
    Ok(Queue { ring, notify })
}
