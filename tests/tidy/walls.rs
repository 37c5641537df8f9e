//! The walls: the order of rooms, the crates of each, and no circles.
//!
//! * **Order.** The table of rooms in the doc comment of `lib.rs` lists them from the ground up. A path in a room may
//!   pass through rooms above it in that table only; `cli` and `main` come after all of them. A path is followed
//!   through re-exports, and every room on its way counts.
//! * **Crates.** A room uses exactly the external crates that its row lists. The row with the longest path applies, so
//!   `server::grpc` may list what `server` may not. Code under `cfg(test)` uses dev-dependencies freely.
//! * **Parents.** No path names what an ancestor module defines in its own file: not by `super::`, not by its full
//!   path, not by a glob. What the ancestor imports or re-exports from another file is not its own.
//! * **Circles.** An edge leads from a file to each file that defines what it names. No set of two or more files may
//!   reach each other. `mod child;` is no edge, and neither is a re-export of something below the module that has it.
//!
//! A file that is declared by `#[cfg(test)] mod x;` counts as a part of the file that declares it. Doc comments and
//! `pub(in path)` are not read. Whatever the `cfg`, everything else is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use crate::paths::{Mention, MentionKind, mentions};
use crate::tree::{FileId, ModuleId, Resolved, Tree};

/// The rooms of the binary, above those of the library.
const BINARY_ROOMS: [&str; 2] = ["cli", "main"];

/// The crates, and where each may be used.
pub struct Walls<'a> {
    pub crates: Vec<Row<'a>>,
    /// Normal dependencies, as paths name them.
    pub dependencies: &'a BTreeSet<String>,
    pub dev_dependencies: &'a BTreeSet<String>,
}

/// A module, and the external crates that may be used in it.
pub struct Row<'a> {
    line: usize,
    module: &'a str,
    crates: Vec<&'a str>,
}

/// The rows of a table: a module's path, a colon, and crates. `#` begins a comment.
pub fn rows(table: &str) -> Vec<Row<'_>> {
    let lines = table.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let rows = lines.map(|(number, line)| {
        let parts = line.split_once(": ").or(line.strip_suffix(':').map(|module| (module, "")));
        let (module, crates) = parts.unwrap_or_else(|| panic!("line {} of the table has no colon", number + 1));
        Row { line: number + 1, module, crates: crates.split_whitespace().collect() }
    });
    rows.collect()
}

/// A fault at a line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub file: String,
    pub line: usize,
    pub wall: Wall,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// A room imports a room that is not above it in the table.
    Order,
    /// The table of rooms and the modules of `lib.rs` differ.
    Table,
    Crates,
    Parent,
    Circle,
    /// Something could not be read, so it is not checked.
    Unread,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.text)
    }
}

/// The result of a check.
pub struct Report {
    pub faults: Vec<Fault>,
    /// The external crates of each row, as they are used.
    pub used: BTreeMap<String, BTreeSet<String>>,
    /// How many paths were read.
    pub paths: usize,
}

impl Report {
    pub fn count(&self, wall: Wall) -> usize {
        self.faults.iter().filter(|fault| fault.wall == wall).count()
    }
}

/// Reads files, each a path below `src/` and its text, and checks them against the walls.
pub fn check(files: &[(String, String)], walls: &Walls<'_>) -> Report {
    let external = walls.dependencies.union(walls.dev_dependencies).cloned().collect();
    let mut tree = Tree::read("tollgate", files, &external);
    let mentions = mentions(&mut tree);
    let mut checker = Checker { tree: &tree, walls, faults: BTreeSet::new(), used: BTreeMap::new() };
    checker.unread();
    let order = checker.order();
    for mention in &mentions {
        checker.mention(mention, &order);
    }
    checker.unused_crates();
    checker.circles(&mentions);
    Report { faults: checker.faults.into_iter().collect(), used: checker.used, paths: mentions.len() }
}

struct Checker<'a> {
    tree: &'a Tree,
    walls: &'a Walls<'a>,
    faults: BTreeSet<Fault>,
    used: BTreeMap<String, BTreeSet<String>>,
}

impl Checker<'_> {
    fn fault(&mut self, file: FileId, line: usize, wall: Wall, text: String) {
        let file = self.tree.files[file].path.clone();
        self.faults.insert(Fault { file, line, wall, text });
    }

    fn unread(&mut self) {
        for (file, line, text) in &self.tree.unread {
            self.faults.insert(Fault { file: file.clone(), line: *line, wall: Wall::Unread, text: text.clone() });
        }
    }

    /// The rooms from the ground up.
    fn order(&mut self) -> Vec<String> {
        let mut order = self.tree.room_table();
        let declared = self.tree.rooms();
        let mut fault = |line, text| {
            self.faults.insert(Fault { file: "lib.rs".into(), line, wall: Wall::Table, text });
        };
        for (room, line) in &declared {
            match order.iter().filter(|each| *each == room).count() {
                0 => fault(*line, format!("the table of rooms has no row for {room}")),
                1 => {}
                _ => fault(*line, format!("the table of rooms has several rows for {room}")),
            }
        }
        for room in &order {
            if !declared.contains_key(room) {
                fault(1, format!("the table of rooms has a row for {room}, which is no module"));
            }
        }
        order.extend(BINARY_ROOMS.map(str::to_owned));
        order
    }

    /// The room of a module; none for the root of the library.
    fn room(&self, module: ModuleId) -> Option<&str> {
        let module = &self.tree.modules[module];
        match module.path.first() {
            Some(room) => Some(room),
            None if module.in_binary => Some("main"),
            None => None,
        }
    }

    fn mention(&mut self, mention: &Mention, order: &[String]) {
        if mention.resolved.unknown {
            let text = format!("{} names nothing that can be found", mention.path);
            self.fault(mention.file, mention.line, Wall::Unread, text);
        }
        self.upward(mention, order);
        self.external_crates(mention);
        self.parent(mention);
    }

    /// The rooms that a path passes through and ends in.
    fn rooms(&self, resolved: &Resolved) -> BTreeSet<&str> {
        let ends = resolved.definitions.iter().map(|definition| definition.module);
        let passed = resolved.through.iter().copied().chain(ends).chain(resolved.modules.iter().copied());
        passed.filter_map(|module| self.room(module)).collect()
    }

    fn upward(&mut self, mention: &Mention, order: &[String]) {
        let Some(room) = self.room(mention.module) else { return };
        let floor = |room: &str| order.iter().position(|each| each == room);
        if floor(room).is_none() && !self.tree.modules[mention.module].in_binary {
            return; // That the table has no row for it is a fault already.
        }
        let imported = self.rooms(&mention.import);
        let rooms = self.rooms(&mention.resolved);
        let rooms = rooms.difference(&imported).filter(|each| **each != room);
        let upward: Vec<String> = rooms
            .filter(|each| floor(each).is_some() && floor(each) >= floor(room))
            .map(|each| format!("{room} uses {each}, which is above it: {}", mention.path))
            .collect();
        for text in upward {
            self.fault(mention.file, mention.line, Wall::Order, text);
        }
    }

    /// The row that applies to a module: the longest path of the table that it is at or below.
    fn row(&self, module: ModuleId) -> String {
        let path = row_path(self.tree, module);
        let holds = |row: &str| path == row || path.strip_prefix(row).is_some_and(|rest| rest.starts_with("::"));
        let rows = self.walls.crates.iter().map(|row| row.module).filter(|row| holds(row));
        let longest = rows.max_by_key(|row| row.len());
        let room = path.split("::").next().unwrap_or_default();
        longest.unwrap_or(room).to_owned()
    }

    fn external_crates(&mut self, mention: &Mention) {
        let row = self.row(mention.module);
        for name in mention.resolved.crates.difference(&mention.import.crates) {
            if mention.in_tests && self.walls.dev_dependencies.contains(name) {
                continue;
            }
            if !self.walls.dependencies.contains(name) {
                let text = format!("{name} is a dev-dependency, and this is not under cfg(test)");
                self.fault(mention.file, mention.line, Wall::Crates, text);
                continue;
            }
            self.used.entry(row.clone()).or_default().insert(name.clone());
            let listed = self.walls.crates.iter().find(|each| each.module == row);
            if !listed.is_some_and(|row| row.crates.contains(&name.as_str())) {
                let text = format!("{row} may not use the crate {name}: {}", mention.path);
                self.fault(mention.file, mention.line, Wall::Crates, text);
            }
        }
    }

    fn unused_crates(&mut self) {
        let nothing = BTreeSet::new();
        for row in &self.walls.crates {
            let mut fault = |text| {
                let file = "../tests/tidy/crates.txt".to_owned();
                self.faults.insert(Fault { file, line: row.line, wall: Wall::Crates, text });
            };
            let tree = self.tree;
            if !(0..tree.modules.len()).any(|module| row_path(tree, module) == row.module) {
                fault(format!("there is a row for {}, which is no module", row.module));
            }
            let used = self.used.get(row.module).unwrap_or(&nothing);
            for name in row.crates.iter().filter(|name| !used.contains(**name)) {
                fault(format!("{} lists the crate {name} and does not use it", row.module));
            }
        }
    }

    fn parent(&mut self, mention: &Mention) {
        let tree = self.tree;
        let here = tree.counted_as(mention.file);
        let mut ancestors = BTreeMap::new();
        let mut at = mention.module;
        while let Some(parent) = tree.modules[at].parent {
            ancestors.entry(tree.counted_as(tree.modules[parent].file)).or_insert(parent);
            at = parent;
        }
        let imported = &mention.import.definitions;
        let definitions = mention.resolved.definitions.iter().filter(|definition| !imported.contains(definition));
        let mut named: Vec<FileId> = definitions.map(|definition| definition.file).collect();
        if mention.kind == MentionKind::Glob {
            named.extend(mention.resolved.modules.iter().filter_map(|of| tree.defines(*of)).map(|of| of.file));
        }
        for file in named.into_iter().map(|file| tree.counted_as(file)).filter(|file| *file != here) {
            if ancestors.contains_key(&file) {
                let whose = &tree.files[file].path;
                let text = format!("takes from the module around it what src/{whose} defines: {}", mention.path);
                self.fault(mention.file, mention.line, Wall::Parent, text);
            }
        }
    }

    fn circles(&mut self, mentions: &[Mention]) {
        let tree = self.tree;
        // The edges between files, each with the first line that makes it.
        let mut edges: BTreeMap<FileId, BTreeMap<FileId, &Mention>> = BTreeMap::new();
        for mention in mentions {
            let from = tree.counted_as(mention.file);
            let resolved = &mention.resolved;
            let globbed = resolved.modules.iter().filter(|_| mention.kind == MentionKind::Glob);
            let ends = resolved.definitions.iter().copied().chain(globbed.filter_map(|of| tree.defines(*of)));
            for end in ends {
                let handed_on = mention.kind == MentionKind::ReExport && tree.is_below(end.module, mention.module);
                let to = tree.counted_as(end.file);
                if to != from && !handed_on {
                    let first = edges.entry(from).or_default().entry(to).or_insert(mention);
                    if mention.line < first.line {
                        *first = mention;
                    }
                }
            }
        }
        let reached: BTreeMap<FileId, HashSet<FileId>> =
            edges.keys().map(|from| (*from, reach(*from, &edges))).collect();
        let mut seen = HashSet::new();
        for (from, others) in &reached {
            let back = |other: &&FileId| reached.get(other).is_some_and(|reached| reached.contains(from));
            let circle: BTreeSet<FileId> = others.iter().filter(back).copied().collect();
            if circle.len() < 2 || !seen.insert(circle.clone()) {
                continue;
            }
            let names: Vec<&str> = circle.iter().map(|file| tree.files[*file].path.as_str()).collect();
            let mut text = format!("a circle of {} files: {}", circle.len(), names.join(", "));
            for (file, targets) in edges.iter().filter(|(file, _)| circle.contains(file)) {
                for (to, mention) in targets.iter().filter(|(to, _)| circle.contains(to)) {
                    let (file, to) = (&tree.files[*file].path, &tree.files[*to].path);
                    text.push_str(&format!("\n    src/{file}:{} -> src/{to}: {}", mention.line, mention.path));
                }
            }
            let first = *circle.first().expect("two or more");
            let line = edges[&first].iter().find(|(to, _)| circle.contains(to)).map_or(1, |(_, mention)| mention.line);
            self.fault(first, line, Wall::Circle, text);
        }
    }
}

/// The path of a module in the table of crates.
fn row_path(tree: &Tree, module: ModuleId) -> String {
    match &tree.modules[module] {
        root if root.path.is_empty() && root.in_binary => "main".into(),
        root if root.path.is_empty() => "lib".into(),
        _ => tree.name(module),
    }
}

/// The files that are reachable from a file, itself included if a circle leads back.
fn reach(from: FileId, edges: &BTreeMap<FileId, BTreeMap<FileId, &Mention>>) -> HashSet<FileId> {
    let mut reached = HashSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for to in edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(*to) {
                open.push(*to);
            }
        }
    }
    reached
}
