//! The grammar of options and the tables behind it: the argument of a device's flag, as typed.

use std::sync::OnceLock;

use vudev_host::Registry;
use vudev_host::kinds::{Block, Net, Rng, Serial, Vsock};
use vudev_host::options::{Kind, Table, Values};

use crate::input::Input;

/// The tables of all devices, and of the proxy.
fn tables() -> &'static [&'static Table] {
    static TABLES: OnceLock<Vec<&'static Table>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let registry = Registry::new();
        let registry = registry.with::<Serial>().with::<Block>().with::<Net>();
        let registry = registry.with::<Rng>().with::<Vsock>().with_vvu_proxy();
        registry
            .entries()
            .iter()
            .map(|entry| entry.table())
            .collect()
    })
}

pub(crate) fn grammar(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let table = input.of(tables());
    let argument = String::from_utf8_lossy(input.rest());
    let end = argument.chars().count() + 1;
    match Values::parse(table, &argument) {
        Ok(values) => read_all(table, &values, end),
        Err(error) => {
            let told = error.to_string();
            assert!(told.starts_with("--") && !told.contains('\n'), "{told:?}");
            assert!(error.at().is_none_or(|column| (1..=end).contains(&column)));
        }
    }
}

/// Every value is of the type and in the range of its key.
fn read_all(table: &'static Table, values: &Values, end: usize) {
    for key in table.all_keys() {
        let name = key.name;
        assert!(
            values
                .column(name)
                .is_none_or(|column| (1..=end).contains(&column))
        );
        match key.value {
            Kind::Text { max } => {
                assert!(
                    values
                        .optional_text(name)
                        .is_none_or(|text| text.len() <= max)
                );
            }
            Kind::PciAddress => drop(values.optional_text(name)),
            Kind::Path => {
                let path = values.optional_path(name);
                assert!(path.is_none_or(|path| !path.as_os_str().is_empty()));
            }
            Kind::Flag => drop(values.flag(name)),
            Kind::Number { min, max } | Kind::Size { min, max } => {
                let number = values.optional_number(name);
                assert!(number.is_none_or(|number| (min..=max).contains(&number)));
            }
            Kind::NumberOrAuto { min, max } => {
                let number = values.number_or_auto(name);
                assert!(number.is_none_or(|number| (min..=max).contains(&number)));
            }
            Kind::Numbers { min, max } => {
                let within = |number| (min..=max).contains(number);
                assert!(values.numbers(name).iter().all(within));
            }
            Kind::Choice(choices) if values.is_given(name) => {
                let chosen = values.choice(name);
                assert!(choices.iter().any(|choice| choice.name == chosen));
            }
            Kind::Choice(_) => {}
            Kind::Vhost => drop(values.vhost()),
        }
    }
    assert!(values.notes().iter().all(|note| !note.contains('\n')));
}
