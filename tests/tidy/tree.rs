//! The module tree of a crate, and what a path in it names.
//!
//! Every file is read, regardless of its `cfg`. A path is followed through modules, imports, globs and re-exports to the
//! file that defines what it names, or to the external crate.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Item, Meta, UseTree, Visibility};

/// An index into `Tree::modules`.
pub type ModuleId = usize;
/// An index into `Tree::files`.
pub type FileId = usize;

/// One source file.
pub struct SourceFile {
    /// Relative to `src/`.
    pub path: String,
    pub syntax: Rc<syn::File>,
    /// The file that declares this one with `#[cfg(test)] mod x;`. Both count as one.
    part_of: Option<FileId>,
    reached: bool,
}

/// A module, with a file of its own or inline.
pub struct Module {
    pub parent: Option<ModuleId>,
    pub file: FileId,
    /// From the root of its crate.
    pub path: Vec<String>,
    /// Part of the binary, not of the library.
    pub in_binary: bool,
    pub tests_only: bool,
    names: Names,
    globs: Vec<Vec<String>>,
    /// Has definitions that no reader of the source can know: macros at its top level.
    opaque: bool,
}

/// The meanings of each name in a scope.
pub type Names = HashMap<String, Vec<Named>>;

/// One meaning of a name.
#[derive(Clone)]
pub enum Named {
    Module(ModuleId),
    Definition(Definition),
    Import(Vec<String>),
}

/// Where something is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Definition {
    pub module: ModuleId,
    pub file: FileId,
}

/// The result of following a path.
#[derive(Default, Debug)]
pub struct Resolved {
    /// The modules that it passes through.
    pub through: Vec<ModuleId>,
    pub definitions: Vec<Definition>,
    pub modules: Vec<ModuleId>,
    pub crates: BTreeSet<String>,
    /// Its first name is imported into the scope that it is written in.
    pub imported: bool,
    /// No name in scope matches.
    pub unknown: bool,
}

/// A set of files as modules.
pub struct Tree {
    pub files: Vec<SourceFile>,
    pub modules: Vec<Module>,
    /// Items to read, with their module and file.
    pub bodies: Vec<(ModuleId, FileId)>,
    /// Files that are not Rust or that no `mod` declares, and declarations without a file: file, line, complaint.
    pub unread: Vec<(String, usize, String)>,
    /// `macro_rules!` by name: they are in scope by the order of the text.
    pub macros: HashMap<String, Vec<Definition>>,
    library: Option<ModuleId>,
    library_name: String,
    external: BTreeSet<String>,
    inline: HashMap<(FileId, usize, usize), ModuleId>,
}

impl Tree {
    /// Reads files, each a path below `src/` and its text. `external` are the names of crates that may be imported.
    pub fn read(library_name: &str, files: &[(String, String)], external: &BTreeSet<String>) -> Self {
        let mut tree = Self {
            files: Vec::new(),
            modules: Vec::new(),
            bodies: Vec::new(),
            unread: Vec::new(),
            macros: HashMap::new(),
            library: None,
            library_name: library_name.into(),
            external: external.clone(),
            inline: HashMap::new(),
        };
        for (path, text) in files {
            match syn::parse_file(text) {
                Ok(syntax) => tree.files.push(SourceFile {
                    path: path.clone(),
                    syntax: Rc::new(syntax),
                    part_of: None,
                    reached: false,
                }),
                Err(error) => {
                    let line = error.span().start().line;
                    tree.unread.push((path.clone(), line, format!("cannot be parsed: {error}")));
                }
            }
        }
        tree.library = tree.root("lib.rs", false);
        tree.root("main.rs", true);
        for file in &tree.files {
            if !file.reached {
                tree.unread.push((file.path.clone(), 1, "belongs to no module".into()));
            }
        }
        tree
    }

    fn root(&mut self, path: &str, in_binary: bool) -> Option<ModuleId> {
        let file = self.files.iter().position(|file| file.path == path)?;
        let root = self.add(None, file, Vec::new(), in_binary, false);
        self.read_file(root, file);
        Some(root)
    }

    fn add(
        &mut self,
        parent: Option<ModuleId>,
        file: FileId,
        path: Vec<String>,
        in_binary: bool,
        tests_only: bool,
    ) -> ModuleId {
        let (names, globs) = (Names::new(), Vec::new());
        self.modules.push(Module { parent, file, path, in_binary, tests_only, names, globs, opaque: false });
        self.modules.len() - 1
    }

    fn read_file(&mut self, module: ModuleId, file: FileId) {
        self.files[file].reached = true;
        self.bodies.push((module, file));
        let syntax = self.files[file].syntax.clone();
        self.collect(module, file, &syntax.items);
    }

    /// Adds the items of a module, or of a part of it that is in a file of its own, to its names.
    fn collect(&mut self, module: ModuleId, file: FileId, items: &[Item]) {
        let mut names = Names::new();
        let mut globs = Vec::new();
        self.names(module, file, items, &mut names, &mut globs);
        let into = &mut self.modules[module];
        for (name, meanings) in names {
            into.names.entry(name).or_default().extend(meanings);
        }
        into.globs.extend(globs);
    }

    /// The names that items bring into a scope: that of `module`, or of a block in it.
    pub fn names(
        &mut self,
        module: ModuleId,
        file: FileId,
        items: &[Item],
        names: &mut Names,
        globs: &mut Vec<Vec<String>>,
    ) {
        let here = Definition { module, file };
        let mut add = |name: String, named| names.entry(name).or_default().push(named);
        for item in items {
            match item {
                Item::Mod(item) => {
                    let name = item.ident.unraw().to_string();
                    if let Some(child) = self.child(module, file, item) {
                        add(name, Named::Module(child));
                    }
                }
                Item::Use(item) => {
                    let mut prefix = Vec::new();
                    if item.leading_colon.is_some() {
                        prefix.push(String::new());
                    }
                    leaves(&item.tree, &prefix, &mut |leaf| match leaf.name {
                        Some(name) if name == "_" => {}
                        Some(name) => add(name, Named::Import(leaf.path)),
                        None => globs.push(leaf.path),
                    });
                }
                Item::ExternCrate(item) => {
                    let name = item.ident.unraw().to_string();
                    let path = match name.as_str() {
                        "self" => vec!["crate".into()],
                        _ => vec![String::new(), name.clone()],
                    };
                    let bound = item.rename.as_ref().map_or(name, |(_, rename)| rename.unraw().to_string());
                    add(bound, Named::Import(path));
                }
                Item::Macro(item) => {
                    if let Some(name) = &item.ident {
                        let name = name.unraw().to_string();
                        self.macros.entry(name.clone()).or_default().push(here);
                        add(name.clone(), Named::Definition(here));
                        if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                            let root = self.root_of(module);
                            let root = &mut self.modules[root].names;
                            root.entry(name).or_default().push(Named::Definition(here));
                        }
                    } else if item.mac.path.is_ident("include") {
                        self.include(module, file, item);
                    } else {
                        self.modules[module].opaque = true;
                        defined_in(item.mac.tokens.clone(), &mut |name| add(name, Named::Definition(here)));
                    }
                }
                Item::Verbatim(_) => self.modules[module].opaque = true,
                item => {
                    if let Some(name) = name_of(item) {
                        add(name, Named::Definition(here));
                    }
                }
            }
        }
    }

    /// The module that a `mod` declares.
    fn child(&mut self, module: ModuleId, file: FileId, item: &syn::ItemMod) -> Option<ModuleId> {
        let name = item.ident.unraw().to_string();
        let parent = &self.modules[module];
        let mut path = parent.path.clone();
        path.push(name.clone());
        let of_tests = tests_only(&item.attrs);
        let (in_binary, tests_only) = (parent.in_binary, parent.tests_only || of_tests);
        let start = item.ident.span().start();
        if let Some((_, items)) = &item.content {
            let child = self.add(Some(module), file, path, in_binary, tests_only);
            self.inline.insert((file, start.line, start.column), child);
            self.collect(child, file, items);
            return Some(child);
        }
        let candidates = self.files_of(module, file, &name, &item.attrs);
        let found = candidates.iter().find_map(|path| self.files.iter().position(|file| file.path == *path));
        let Some(child_file) = found else {
            let complaint = format!("declares module {name}, which has no file ({})", candidates.join(", "));
            self.unread.push((self.files[file].path.clone(), start.line, complaint));
            return None;
        };
        if of_tests {
            self.files[child_file].part_of = Some(file);
        }
        let child = self.add(Some(module), child_file, path, in_binary, tests_only);
        self.read_file(child, child_file);
        Some(child)
    }

    /// Where the file of a module may be.
    fn files_of(&self, module: ModuleId, file: FileId, name: &str, attributes: &[Attribute]) -> Vec<String> {
        let path = &self.files[file].path;
        let (directory, file_name) = path.rsplit_once('/').unwrap_or(("", path));
        let join = |directory: &str, rest: &str| match directory {
            "" => rest.to_owned(),
            directory => format!("{directory}/{rest}"),
        };
        for attribute in attributes {
            if let Meta::NameValue(meta) = &attribute.meta
                && meta.path.is_ident("path")
                && let syn::Expr::Lit(value) = &meta.value
                && let syn::Lit::Str(value) = &value.lit
            {
                return vec![join(directory, &value.value())];
            }
        }
        // Names of inline modules are directories below that of the file.
        let mut inline = Vec::new();
        let mut at = module;
        while let Some(parent) = self.modules[at].parent
            && self.modules[parent].file == file
        {
            inline.insert(0, self.modules[at].path.last().expect("only a root has no name").clone());
            at = parent;
        }
        let base = match file_name {
            "mod.rs" | "lib.rs" | "main.rs" => directory.to_owned(),
            file_name => join(directory, file_name.trim_end_matches(".rs")),
        };
        let base = inline.iter().fold(base, |base, name| join(&base, name));
        vec![join(&base, &format!("{name}.rs")), join(&base, &format!("{name}/mod.rs"))]
    }

    fn include(&mut self, module: ModuleId, file: FileId, item: &syn::ItemMacro) {
        let line = item.span().start().line;
        let path = &self.files[file].path;
        let Ok(name) = item.mac.parse_body::<syn::LitStr>() else {
            self.unread.push((path.clone(), line, "includes what is not a literal".into()));
            return;
        };
        let directory = path.rsplit_once('/').map_or(String::new(), |(directory, _)| format!("{directory}/"));
        let included = format!("{directory}{}", name.value());
        match self.files.iter().position(|file| file.path == included) {
            Some(included) => self.read_file(module, included),
            None => self.unread.push((path.clone(), line, format!("includes {included}, which is not there"))),
        }
    }

    /// The inline module that a `mod` with a body declares.
    pub fn inline(&self, file: FileId, item: &syn::ItemMod) -> ModuleId {
        let start = item.ident.span().start();
        self.inline[&(file, start.line, start.column)]
    }

    /// The file that a file counts as.
    pub fn counted_as(&self, file: FileId) -> FileId {
        self.files[file].part_of.map_or(file, |declaring| self.counted_as(declaring))
    }

    /// Whether a module is inside another, at any depth.
    pub fn is_below(&self, module: ModuleId, ancestor: ModuleId) -> bool {
        let parent = self.modules[module].parent;
        parent.is_some_and(|parent| parent == ancestor || self.is_below(parent, ancestor))
    }

    /// The names that a module defines, without imports and modules.
    pub fn defines(&self, module: ModuleId) -> Option<Definition> {
        let named = self.modules[module].names.values().flatten();
        named.into_iter().find_map(|named| match named {
            Named::Definition(definition) if definition.module == module => Some(*definition),
            Named::Module(_) | Named::Import(_) | Named::Definition(_) => None,
        })
    }

    fn root_of(&self, module: ModuleId) -> ModuleId {
        self.modules[module].parent.map_or(module, |parent| self.root_of(parent))
    }

    /// Resolves a path that is written in a module, inside blocks from the outermost to the innermost.
    pub fn resolve(&self, module: ModuleId, blocks: &[Block], path: &[String]) -> Resolved {
        let mut resolved = Resolved::default();
        self.follow(module, blocks, path, &mut HashSet::new(), &mut resolved);
        resolved
    }

    fn follow(
        &self,
        module: ModuleId,
        blocks: &[Block],
        path: &[String],
        seen: &mut HashSet<(ModuleId, usize, String)>,
        resolved: &mut Resolved,
    ) {
        let (first, rest) = path.split_first().expect("a path has a name");
        match first.as_str() {
            "" => match rest.first() {
                Some(name) => self.outside(name, resolved),
                None => resolved.unknown = true,
            },
            "Self" => {}
            "crate" => self.enter(self.root_of(module), rest, seen, resolved),
            "self" => self.enter(module, rest, seen, resolved),
            "super" => {
                let mut at = module;
                let mut rest = path;
                while rest.first().is_some_and(|name| name == "super") {
                    let Some(parent) = self.modules[at].parent else {
                        resolved.unknown = true;
                        return;
                    };
                    (at, rest) = (parent, &rest[1..]);
                }
                resolved.through.push(at);
                self.enter(at, rest, seen, resolved);
            }
            name => {
                for (depth, block) in blocks.iter().enumerate().rev() {
                    let found = Self::meanings(block.names.get(name), (module, depth + 1, name), seen);
                    if !found.is_empty() {
                        resolved.imported = found.iter().any(|named| matches!(named, Named::Import(_)));
                        self.take(module, &blocks[..=depth], found, rest, seen, resolved);
                        return;
                    }
                    for glob in &block.globs {
                        let mut inside = Resolved::default();
                        self.through_glob(module, &blocks[..depth], glob, name, rest, seen, &mut inside);
                        if !inside.unknown {
                            resolved.absorb(inside);
                            return;
                        }
                    }
                }
                let mut inside = Resolved::default();
                self.walk(module, path, seen, &mut inside);
                if !inside.unknown {
                    resolved.absorb(inside);
                    let here = self.modules[module].names.get(name).into_iter().flatten();
                    resolved.imported = here.into_iter().any(|named| matches!(named, Named::Import(_)));
                } else if self.modules[module].in_binary && name == self.library_name {
                    self.enter(self.library.expect("a binary has a library"), rest, seen, resolved);
                } else {
                    self.outside(name, resolved);
                    if resolved.unknown {
                        resolved.through.extend(inside.through);
                    }
                }
            }
        }
    }

    fn outside(&self, name: &str, resolved: &mut Resolved) {
        if self.external.contains(name) {
            resolved.crates.insert(name.into());
        } else if !["std", "core", "alloc"].contains(&name) {
            resolved.unknown = true;
        }
    }

    /// Follows the rest of a path into a module that it names. A macro may define what is not found there.
    fn enter(
        &self,
        module: ModuleId,
        rest: &[String],
        seen: &mut HashSet<(ModuleId, usize, String)>,
        resolved: &mut Resolved,
    ) {
        let mut inside = Resolved::default();
        self.walk(module, rest, seen, &mut inside);
        if inside.unknown && inside.through.is_empty() && self.modules[module].opaque {
            inside = Resolved::default();
            inside.definitions.push(Definition { module, file: self.modules[module].file });
        }
        resolved.absorb(inside);
    }

    /// Follows the rest of a path from the names of a module.
    fn walk(
        &self,
        module: ModuleId,
        rest: &[String],
        seen: &mut HashSet<(ModuleId, usize, String)>,
        resolved: &mut Resolved,
    ) {
        let Some((name, rest)) = rest.split_first() else {
            resolved.modules.push(module);
            return;
        };
        let inside = &self.modules[module];
        let found = Self::meanings(inside.names.get(name), (module, 0, name), seen);
        if !found.is_empty() {
            self.take(module, &[], found, rest, seen, resolved);
            return;
        }
        for glob in &inside.globs {
            if seen.insert((module, usize::MAX, format!("{}::{name}", glob.join("::")))) {
                let mut through = Resolved::default();
                self.through_glob(module, &[], glob, name, rest, seen, &mut through);
                if !through.unknown {
                    resolved.absorb(through);
                    return;
                }
            }
        }
        resolved.unknown = true;
    }

    #[expect(clippy::too_many_arguments, reason = "a path, where it is, and what is known of it")]
    fn through_glob(
        &self,
        module: ModuleId,
        blocks: &[Block],
        glob: &[String],
        name: &str,
        rest: &[String],
        seen: &mut HashSet<(ModuleId, usize, String)>,
        resolved: &mut Resolved,
    ) {
        let mut of = Resolved::default();
        self.follow(module, blocks, glob, seen, &mut of);
        let path: Vec<String> = [name.to_owned()].into_iter().chain(rest.iter().cloned()).collect();
        resolved.unknown = true;
        for inside in of.modules {
            let mut found = Resolved::default();
            self.walk(inside, &path, seen, &mut found);
            if !found.unknown {
                resolved.unknown = false;
                resolved.absorb(found);
            }
        }
    }

    /// The meanings of a name, without imports that are being followed already.
    fn meanings(
        named: Option<&Vec<Named>>,
        (module, depth, name): (ModuleId, usize, &str),
        seen: &mut HashSet<(ModuleId, usize, String)>,
    ) -> Vec<Named> {
        let named = named.map(Vec::as_slice).unwrap_or_default();
        if named.iter().any(|named| matches!(named, Named::Import(_))) && !seen.insert((module, depth, name.into())) {
            return named.iter().filter(|named| !matches!(named, Named::Import(_))).cloned().collect();
        }
        named.to_vec()
    }

    fn take(
        &self,
        module: ModuleId,
        blocks: &[Block],
        found: Vec<Named>,
        rest: &[String],
        seen: &mut HashSet<(ModuleId, usize, String)>,
        resolved: &mut Resolved,
    ) {
        // A path continues into a module or an import of this name, and only without one into a type.
        let is_place = |named: &Named| !matches!(named, Named::Definition(_));
        let places_only = !rest.is_empty() && found.iter().any(is_place);
        for named in found.into_iter().filter(|named| !places_only || is_place(named)) {
            match named {
                Named::Definition(definition) => resolved.definitions.push(definition),
                Named::Module(inside) => {
                    resolved.through.push(inside);
                    self.enter(inside, rest, seen, resolved);
                }
                Named::Import(path) => {
                    let whole: Vec<String> = path.iter().chain(rest).cloned().collect();
                    let mut inside = Resolved::default();
                    self.follow(module, blocks, &whole, seen, &mut inside);
                    resolved.absorb(inside);
                }
            }
        }
    }

    /// Whether a name may be there that nothing in the source shows: from an external glob, an enum, or a macro.
    pub fn may_hide_names(&self, module: ModuleId, blocks: &[Block]) -> bool {
        let of_blocks = blocks.iter().flat_map(|block| &block.globs);
        self.modules[module].opaque
            || self.modules[module].globs.iter().chain(of_blocks).any(|glob| {
                let of = self.resolve(module, blocks, glob);
                of.modules.is_empty() || of.modules.iter().any(|inside| self.modules[*inside].opaque)
            })
    }

    /// The name of a module in messages: `store::redis`, `cli::state`.
    pub fn name(&self, module: ModuleId) -> String {
        self.modules[module].path.join("::")
    }

    /// The text of every `//!` line of a root.
    pub fn room_table(&self) -> Vec<String> {
        let Some(library) = self.library else { return Vec::new() };
        rooms_of(&self.files[self.modules[library].file].syntax.attrs)
    }

    /// The modules right below the root of the library, with the line that declares each.
    pub fn rooms(&self) -> BTreeMap<String, usize> {
        let Some(library) = self.library else { return BTreeMap::new() };
        let items = &self.files[self.modules[library].file].syntax.items;
        let modules = items.iter().filter_map(|item| match item {
            Item::Mod(item) => Some((item.ident.unraw().to_string(), item.ident.span().start().line)),
            _ => None,
        });
        modules.collect()
    }
}

impl Resolved {
    fn absorb(&mut self, other: Resolved) {
        self.through.extend(other.through);
        self.definitions.extend(other.definitions);
        self.modules.extend(other.modules);
        self.crates.extend(other.crates);
        self.unknown |= other.unknown;
    }
}

/// The names that the items of a block bring into scope.
#[derive(Default)]
pub struct Block {
    pub names: Names,
    pub globs: Vec<Vec<String>>,
}

/// A single import of a `use`.
pub struct Leaf {
    pub path: Vec<String>,
    /// Its name here; `None` for a glob.
    pub name: Option<String>,
    pub line: usize,
}

/// Calls `each` with every import of a tree.
pub fn leaves(tree: &UseTree, prefix: &[String], each: &mut dyn FnMut(Leaf)) {
    let joined = |name: &syn::Ident| -> Vec<String> {
        let name = name.unraw().to_string();
        if name == "self" && !prefix.is_empty() && prefix != [""] {
            return prefix.to_vec();
        }
        prefix.iter().cloned().chain([name]).collect()
    };
    let line = tree.span().start().line;
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &joined(&path.ident), each),
        UseTree::Name(name) => {
            let path = joined(&name.ident);
            let bound = path.last().cloned();
            each(Leaf { path, name: bound, line });
        }
        UseTree::Rename(rename) => {
            let name = Some(rename.rename.unraw().to_string());
            each(Leaf { path: joined(&rename.ident), name, line });
        }
        UseTree::Glob(_) => each(Leaf { path: prefix.to_vec(), name: None, line }),
        UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, prefix, each)),
    }
}

/// Whether a use is re-exported: `pub`, `pub(crate)`, `pub(super)`.
pub fn is_reexport(visibility: &Visibility) -> bool {
    !matches!(visibility, Visibility::Inherited)
}

/// Whether attributes restrict an item to tests.
pub fn tests_only(attributes: &[Attribute]) -> bool {
    let only = |attribute: &Attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => list.parse_args::<Meta>().is_ok_and(|meta| needs_test(&meta)),
        _ => false,
    };
    attributes.iter().any(only)
}

fn needs_test(meta: &Meta) -> bool {
    let Meta::List(list) = meta else { return meta.path().is_ident("test") };
    let inside = list.parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated);
    let Ok(inside) = inside else { return false };
    (list.path.is_ident("all") && inside.iter().any(needs_test))
        || (list.path.is_ident("any") && !inside.is_empty() && inside.iter().all(needs_test))
}

/// The rooms of the table in a doc comment, from the ground up: the text in backticks in the first cell of each row.
fn rooms_of(attributes: &[Attribute]) -> Vec<String> {
    let mut rooms = Vec::new();
    let mut in_table = false;
    for attribute in attributes {
        let Meta::NameValue(meta) = &attribute.meta else { continue };
        let syn::Expr::Lit(value) = &meta.value else { continue };
        let syn::Lit::Str(line) = &value.lit else { continue };
        let line = line.value();
        let Some(row) = line.trim().strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let first = row.split('|').next().unwrap_or_default();
        if first.trim() == "room" {
            in_table = true;
        } else if in_table {
            let quoted = first.split('`').skip(1).step_by(2);
            rooms.extend(quoted.map(|room| room.trim_end_matches('/').to_owned()));
        }
    }
    rooms
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.unraw().to_string())
}

/// The names that the arguments of a macro at the top level of a module define.
fn defined_in(tokens: TokenStream, each: &mut dyn FnMut(String)) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(keyword)
                if ["struct", "enum", "union", "trait", "type", "fn", "const", "static"]
                    .iter()
                    .any(|each| keyword == each) =>
            {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 1) {
                    each(name.unraw().to_string());
                }
            }
            _ => {}
        }
    }
}
