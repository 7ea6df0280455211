//! The report: its layers, as lines for a person and as one JSON object for a program.
//!
//! The object's shape is part of the command: fields are added and never renamed.
//!
//! ```json
//! {"jailed": true, "devices": ["serial", "block"], "layers": [
//!   {"name": "io_uring", "available": true, "required": true, "detail": "…",
//!    "missing": [], "remedy": null}]}
//! ```

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

/// One layer of the jail, or one thing that the host must have for it.
#[derive(Debug, Serialize)]
pub(super) struct Layer {
    /// Stable: `kernel`, `io_uring.opcodes`, `namespace.user`, `policies.block`.
    pub(super) name: Cow<'static, str>,
    /// Whether this host has it, for the user who asked.
    pub(super) available: bool,
    /// Whether a device is refused without it.
    pub(super) required: bool,
    /// What was found.
    pub(super) detail: String,
    /// The parts that are not there, by the kernel's names.
    pub(super) missing: Vec<String>,
    /// What makes it available; null if it is.
    pub(super) remedy: Option<String>,
}

impl Layer {
    pub(super) fn there(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            available: true,
            required: true,
            detail: detail.into(),
            missing: Vec::new(),
            remedy: None,
        }
    }

    pub(super) fn not_there(
        name: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            available: false,
            remedy: Some(remedy.into()),
            ..Self::there(name, detail)
        }
    }

    pub(super) fn missing(mut self, missing: &[String]) -> Self {
        self.missing = missing.to_vec();
        self
    }

    /// Devices are started without it too.
    pub(super) fn optional(mut self) -> Self {
        self.required = false;
        self
    }
}

/// All layers.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    jailed: bool,
    devices: Vec<&'static str>,
    layers: Vec<Layer>,
}

impl Report {
    pub(super) fn new(layers: Vec<Layer>, devices: Vec<&'static str>) -> Self {
        let jailed = layers
            .iter()
            .all(|layer| layer.available || !layer.required);
        Self {
            jailed,
            devices,
            layers,
        }
    }

    /// Whether devices can be fully jailed here.
    pub(super) fn jailed(&self) -> bool {
        self.jailed
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and booleans are JSON")
    }

    /// One line a layer, and the verdict.
    pub(super) fn text(&self, program: &str) -> String {
        let width = |text: &dyn Fn(&Layer) -> usize| self.layers.iter().map(text).max();
        let name = width(&|layer| layer.name.len()).unwrap_or(0);
        let mut text = String::new();
        for layer in &self.layers {
            let state = match (layer.available, layer.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            let remedy = layer.remedy.as_deref().map(|remedy| format!(": {remedy}"));
            let remedy = remedy.unwrap_or_default();
            let detail = &layer.detail;
            let _ = writeln!(text, "{:name$}  {state:3}  {detail}{remedy}", layer.name);
        }
        let lacking: Vec<_> = self
            .layers
            .iter()
            .filter(|layer| layer.required && !layer.available)
            .map(|layer| &*layer.name)
            .collect();
        let _ = match lacking.is_empty() {
            true => write!(text, "{program}: devices can be fully jailed here"),
            false => write!(
                text,
                "{program}: devices cannot be fully jailed here: {} not available",
                lacking.join(", ")
            ),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_layer_that_devices_need_changes_the_verdict() {
        let there = || Layer::there("a", "found");
        let optional = Layer::not_there("bcd", "not found", "get it").optional();
        let report = Report::new(vec![there(), optional], vec!["disk"]);
        assert!(report.jailed());
        assert_eq!(
            report.text("prog"),
            "a    yes  found\nbcd  no   not found: get it\n\
             prog: devices can be fully jailed here"
        );
        let needed = Layer::not_there("e", "none", "buy").missing(&["x".to_owned()]);
        let report = Report::new(vec![there(), needed], Vec::new());
        assert!(!report.jailed());
        assert_eq!(
            report.json(),
            r#"{"jailed":false,"devices":[],"layers":[{"name":"a","available":true,"#.to_owned()
                + r#""required":true,"detail":"found","missing":[],"remedy":null},"#
                + r#"{"name":"e","available":false,"required":true,"detail":"none","#
                + r#""missing":["x"],"remedy":"buy"}]}"#
        );
    }
}
