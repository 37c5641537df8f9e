//! Builds the lists of values that rules match by name.

use std::collections::HashMap;
use std::sync::Arc;

use super::data_file::{DataFile, DataPlace, note_size};
use crate::config::document::disk::Disk;
use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::rules::{DataSize, Form, ValueList};

/// The lists of a configuration.
pub(in crate::config) struct Lists<'a> {
    /// In the order of the configuration.
    lists: Vec<WrittenList<'a>>,
    by_name: HashMap<&'a str, usize>,
}

struct WrittenList<'a> {
    name: &'a str,
    location: &'a Location,
    place: DataPlace,
    /// None if it could not be read, which was reported.
    values: Option<Arc<ValueList>>,
}

/// Reads the files of the lists.
pub(in crate::config) fn lists<'a>(file: &'a schema::File, disk: &Disk, problems: &mut Problems) -> Lists<'a> {
    let mut lists = Vec::new();
    for item in file.lists.named() {
        let path = item.value.as_ref().and_then(|list| list.file.get());
        let read = path.and_then(|path| DataFile::read(path, &item.location.path, disk, problems));
        let place = read.as_ref().map(DataFile::whole).unwrap_or_default();
        let values = read.map(|file| Arc::new(ValueList::new(&item.name, file.text)));
        if values.as_ref().is_some_and(|values| values.is_empty()) {
            place.error(&item.location.path, "has no value; expected one on each line", problems);
        }
        lists.push(WrittenList { name: &item.name, location: &item.location, place, values });
    }
    let by_name = lists.iter().enumerate().map(|(index, list)| (list.name, index)).collect();
    Lists { lists, by_name }
}

impl Lists<'_> {
    /// The list of this name, or none if it could not be read. The error has the names that there are.
    pub(in crate::config) fn get(
        &self,
        name: &str,
    ) -> Result<Option<&Arc<ValueList>>, impl Iterator<Item = &str> + Clone> {
        match self.by_name.get(name) {
            Some(&index) => Ok(self.lists[index].values.as_ref()),
            None => Err(self.lists.iter().map(|list| list.name)),
        }
    }

    /// Reports the values of a list that an entry of this form never has. Each is reported once.
    pub(in crate::config) fn check(&self, name: &str, form: &Form, problems: &mut Problems) {
        let Some(WrittenList { place, values: Some(values), location, .. }) =
            self.by_name.get(name).map(|&at| &self.lists[at])
        else {
            return;
        };
        if let Err(faults) = form.set_of(values) {
            place.faults(&location.path, &faults, problems);
        }
    }

    /// Notes the size of each list, and returns them.
    pub(in crate::config) fn finish(self, problems: &mut Problems) -> Vec<Arc<ValueList>> {
        for list in &self.lists {
            if let Some(values) = &list.values {
                note_size(&DataSize::of_list(values), "value", "rule", list.location, problems);
            }
        }
        self.lists.into_iter().filter_map(|list| list.values).collect()
    }
}
