//! Everything a session remembers, and what each family of messages does to it. Not the messages'
//! way in and out, and of rings only which one is meant: the rest is in `rings` and `memory`.

use std::rc::{Rc, Weak};

use vudev_executor::{Handle, Notify};
use vudev_virtio::spec::feature::VERSION_1;
use vudev_virtio::{Device, GuestMemory, Identity};

use super::backend_channel::ConfigNews;
use super::error::{Reason, SessionError};
use super::queue_setup::{QueueSetup, Surroundings};
use crate::features::{self, PROTOCOL_FEATURES};
use crate::message::{
    Body, ConfigRequest, FeatureRequest, Gate, LifecycleRequest, ProtocolFeatures, Request,
};
use crate::running;

/// A session's memory of its front-end.
pub(super) struct State<D> {
    pub(super) handle: Handle,
    pub(super) device: Rc<D>,
    identity: Identity,
    /// What SET_FEATURES said.
    pub(super) features: Option<u64>,
    /// What the wire lets us offer.
    protocol_offered: ProtocolFeatures,
    protocol_features: ProtocolFeatures,
    pub(super) memory: Option<Rc<GuestMemory>>,
    /// Memory that was replaced and may still be in use by operations in flight.
    pub(super) replaced: Vec<Weak<GuestMemory>>,
    pub(super) rings: Vec<QueueSetup>,
    /// Notified when a ring ends.
    pub(super) changed: Rc<Notify>,
    backend_channel: Option<ConfigNews>,
}

impl<D: Device> State<D> {
    pub(super) fn new(handle: &Handle, device: Rc<D>, protocol_offered: ProtocolFeatures) -> Self {
        let identity = device.identity();
        let rings = (0..)
            .zip(&identity.queue_sizes)
            .map(|(i, max)| QueueSetup::new(i, *max));
        Self {
            handle: handle.clone(),
            rings: rings.collect(),
            device,
            identity,
            features: None,
            protocol_offered,
            protocol_features: ProtocolFeatures::default(),
            memory: None,
            replaced: Vec::new(),
            changed: Rc::new(Notify::new()),
            backend_channel: None,
        }
    }

    /// Whether a message may be sent in view of what was agreed upon.
    pub(super) fn allows(&self, gate: Gate) -> Result<(), Reason> {
        match gate {
            Gate::Open => Ok(()),
            Gate::Protocol(needed) if self.protocol_features.contains(needed) => Ok(()),
            Gate::Protocol(needed) => Err(Reason::NotNegotiated(needed)),
        }
    }

    /// Whether the front-end is told of success and failure where it asks for it.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol_features.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Carries out a request. `Some` is the reply of a message that has one of its own.
    pub(super) async fn dispatch(&mut self, request: Request) -> Result<Option<Body>, Reason> {
        match request {
            Request::Feature(request) => self.feature(request),
            Request::Lifecycle(request) => self.lifecycle(request).await,
            Request::Memory(request) => self.memory_request(request).await,
            Request::Ring { index, request } => self.ring_request(index, request).await,
            Request::Config(request) => self.config(request),
            Request::BackendChannel(channel) => {
                let channel = ConfigNews::new(&self.handle, &self.device, channel)?;
                // The last one's ends first, so that no change goes to it any more.
                self.backend_channel = None;
                self.backend_channel = Some(channel);
                Ok(None)
            }
        }
    }

    fn feature(&mut self, request: FeatureRequest) -> Result<Option<Body>, Reason> {
        match request {
            FeatureRequest::Features => Ok(Some(Body::Number(self.offered()))),
            FeatureRequest::SetFeatures(features) => self.set_features(features).map(|()| None),
            FeatureRequest::ProtocolFeatures => {
                Ok(Some(Body::Number(self.protocol_offered.bits())))
            }
            FeatureRequest::SetProtocolFeatures(bits) => {
                self.protocol_features = self.protocol_offered.agreed(bits);
                Ok(None)
            }
            FeatureRequest::QueueCount => Ok(Some(Body::Number(self.rings.len() as u64))),
        }
    }

    fn offered(&self) -> u64 {
        features::offered(&self.identity) | PROTOCOL_FEATURES
    }

    /// A front-end may say this several times while the driver makes up its mind, the half without
    /// VERSION_1 first, so a legacy driver is refused when its first ring would start, not here.
    fn set_features(&mut self, features: u64) -> Result<(), Reason> {
        let extra = features & !self.offered();
        if extra != 0 {
            return Err(Reason::FeaturesNotOffered { extra });
        }
        if self.features == Some(features) {
            return Ok(());
        }
        if self.rings.iter().any(QueueSetup::is_running) {
            return Err(Reason::FeaturesWhileRunning);
        }
        self.features = Some(features);
        if features & VERSION_1 != 0 {
            self.device.negotiated(features & !PROTOCOL_FEATURES);
        }
        self.start_ready_rings()
    }

    async fn lifecycle(&mut self, request: LifecycleRequest) -> Result<Option<Body>, Reason> {
        match request {
            // One connection has one owner, from its first message on.
            LifecycleRequest::SetOwner => {}
            // The spec lets a back-end take the old RESET_OWNER as a stop of all rings. Those who
            // still send it mean a reset.
            LifecycleRequest::ResetOwner | LifecycleRequest::ResetDevice => self.reset().await?,
        }
        Ok(None)
    }

    /// The device as a driver finds it first. Memory and protocol features belong to the front-end
    /// and stay.
    async fn reset(&mut self) -> Result<(), Reason> {
        let reset = self.reset_rings().await;
        let Self {
            handle,
            device,
            identity: _,
            features,
            protocol_offered: _,
            protocol_features: _,
            memory: _,
            replaced: _,
            rings: _,
            changed: _,
            backend_channel: _,
        } = self;
        *features = None;
        running::reset(handle, &**device).await;
        reset
    }

    fn config(&self, request: ConfigRequest) -> Result<Option<Body>, Reason> {
        match request {
            ConfigRequest::Read {
                offset,
                length,
                flags,
            } => {
                let bytes = self.read_config(usize::from(offset), usize::from(length));
                Ok(Some(Body::Config {
                    offset,
                    flags,
                    bytes,
                }))
            }
            ConfigRequest::Write { offset, bytes } => {
                let (at, length) = (usize::from(offset), bytes.len());
                if self.identity.config_range(at, length).is_none() {
                    let size = self.identity.config_size;
                    return Err(Reason::ConfigRange {
                        offset,
                        length,
                        size,
                    });
                }
                self.device.write_config(at, &bytes)?;
                Ok(None)
            }
        }
    }

    /// Front-ends read the structure as *they* know it, which may be longer than ours: what the
    /// device does not have reads as zero.
    fn read_config(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let available = self.identity.config_size.saturating_sub(offset).min(length);
        if available > 0 {
            self.device.read_config(offset, &mut bytes[..available]);
        }
        bytes
    }

    /// Whether a file behind guest memory has shrunk.
    pub(super) fn check_memory(&self) -> Result<(), SessionError> {
        match &self.memory {
            Some(memory) if memory.is_lost() => Err(SessionError::MemoryLost),
            Some(_) | None => Ok(()),
        }
    }

    /// What a ring needs beside itself.
    pub(super) fn surroundings(&mut self) -> (Surroundings<'_, D>, &mut Vec<QueueSetup>) {
        let around = Surroundings {
            handle: &self.handle,
            device: &self.device,
            memory: self.memory.as_ref(),
            features: self.features,
            changed: &self.changed,
        };
        (around, &mut self.rings)
    }
}
