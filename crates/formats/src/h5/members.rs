//! The objects of a group and of the groups in it, found in one walk per group. hdf5-pure reads all links of a group to
//! find one name, which takes minutes in a dataframe of ten thousand columns.

use std::collections::HashMap;
use std::sync::Arc;

use hdf5_pure::Group;

use super::file::{H5, H5Dataset};
use crate::error::Result;

/// Number of parts in the longest path that is followed.
const MAX_DEPTH: usize = 64;
/// Number of groups that are searched for names: hard links can make a group hold itself.
const MAX_GROUPS: usize = 1000;

/// A group of an open file.
pub(crate) struct H5Group {
    h5: H5,
    object: String,
    group: Arc<Group>,
}

/// An object of the file.
pub(crate) enum Object {
    Group(H5Group),
    Dataset(Box<H5Dataset>),
}

impl H5Group {
    /// The dataset of a name in the group, or `None` if there is none.
    pub(crate) fn dataset(&self, name: &str) -> Result<Option<H5Dataset>> {
        match self.group.dataset(name) {
            Ok(dataset) => self.h5.described(format!("{}/{name}", self.object), dataset).map(Some),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn bool_attribute(&self, name: &str) -> bool {
        self.group.attrs().is_ok_and(|all| all.get(name).is_some_and(super::file::is_true))
    }

    /// True if the group is a value of its own and not only a step in the path to others.
    pub(crate) fn is_encoded(&self) -> bool {
        let has = |name| self.group.dataset(name).is_ok();
        has("codes") || has("values") || self.group.attrs().is_ok_and(|all| all.contains_key("encoding-type"))
    }
}

/// Datasets and groups by name. Only hard links are listed: links to other paths and files are not followed.
#[derive(Default)]
struct Members {
    datasets: HashMap<String, hdf5_pure::Dataset>,
    groups: HashMap<String, Arc<Group>>,
}

/// Objects of a file by path, each group of which is walked once.
pub(crate) struct Objects<'a> {
    h5: &'a H5,
    /// `None` for a group that cannot be listed, because a link in it is damaged or leads to a path.
    walked: HashMap<String, Option<Members>>,
}

impl<'a> Objects<'a> {
    pub(crate) fn new(h5: &'a H5) -> Self {
        Self { h5, walked: HashMap::new() }
    }

    /// Path of `name` below `base`, as HDF5 reads it: a name that begins with a slash is a path from the root, empty
    /// and `.` parts are dropped.
    pub(crate) fn path(base: &str, name: &str) -> String {
        let base = if name.starts_with('/') { "" } else { base };
        let parts = base.split('/').chain(name.split('/')).filter(|part| !part.is_empty() && *part != ".");
        parts.collect::<Vec<_>>().join("/")
    }

    /// Takes the object at a path; `None` if there is none. A dataset can be taken once.
    pub(crate) fn take(&mut self, path: &str) -> Result<Option<Object>> {
        if path.split('/').count() > MAX_DEPTH {
            return Ok(None);
        }
        let (parent, leaf) = path.rsplit_once('/').unwrap_or(("", path));
        let h5 = self.h5;
        let group = |group| Object::Group(H5Group { h5: h5.clone(), object: path.to_owned(), group });
        if let Some(members) = self.members(parent) {
            if let Some(dataset) = members.datasets.remove(leaf) {
                return h5.described(path.to_owned(), dataset).map(|d| Some(Object::Dataset(Box::new(d))));
            }
            return Ok(members.groups.get(leaf).cloned().map(group));
        }
        if let Some(found) = h5.group(path) {
            return Ok(Some(group(Arc::new(found))));
        }
        Ok(h5.optional_dataset(path)?.map(|dataset| Object::Dataset(Box::new(dataset))))
    }

    /// Names of the objects in a group, sorted, with the paths of those in groups that only group them: `age/sex`.
    pub(crate) fn names(&mut self, object: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut folders = vec![String::new()];
        let mut searched = 0;
        while let Some(prefix) = folders.pop() {
            searched += 1;
            if searched > MAX_GROUPS {
                let problem = format!("holds names in more than {MAX_GROUPS} groups, or a group that holds itself");
                return Err(self.h5.error(object, problem));
            }
            let folder = Self::path(object, &prefix);
            let Some(members) = self.members(&folder) else {
                return Err(self.h5.unlisted(&folder));
            };
            names.extend(members.datasets.keys().map(|name| format!("{prefix}{name}")));
            let groups: Vec<(String, Arc<Group>)> =
                members.groups.iter().map(|(name, group)| (name.clone(), Arc::clone(group))).collect();
            for (name, group) in groups {
                let group = H5Group { h5: self.h5.clone(), object: Self::path(&folder, &name), group };
                let name = format!("{prefix}{name}");
                match group.is_encoded() || name == "__categories" {
                    true => names.push(name),
                    false => folders.push(format!("{name}/")),
                }
            }
        }
        names.sort();
        Ok(names)
    }

    fn members(&mut self, object: &str) -> Option<&mut Members> {
        if !self.walked.contains_key(object) {
            let members = self.walk(object);
            self.walked.insert(object.to_owned(), members);
        }
        self.walked.get_mut(object)?.as_mut()
    }

    /// The members of a group; no members if there is no such group.
    fn walk(&mut self, object: &str) -> Option<Members> {
        let group = match object.rsplit_once('/') {
            Some((parent, leaf)) => match self.members(parent) {
                Some(members) => members.groups.get(leaf).cloned(),
                None => self.h5.group(object).map(Arc::new),
            },
            None if object.is_empty() => self.h5.group("/").map(Arc::new),
            None => self.h5.group(object).map(Arc::new),
        };
        let Some(group) = group else {
            return Some(Members::default());
        };
        let datasets = group.iter_datasets().ok()?.collect();
        let groups = group.iter_groups().ok()?.map(|(name, group)| (name, Arc::new(group))).collect();
        Some(Members { datasets, groups })
    }
}
