//! Every path of a tree: of imports, types, expressions, patterns, attributes, and arguments of macros.

use std::collections::HashSet;

use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta};

use crate::tree::{Block, Definition, FileId, ModuleId, Names, Resolved, Tree, is_reexport, leaves, tests_only};

/// A path, where it is, and what it names.
pub struct Mention {
    pub module: ModuleId,
    pub file: FileId,
    pub line: usize,
    pub path: String,
    pub resolved: Resolved,
    /// The target of the import that the path begins with. An import is checked where it is written, not again here.
    pub import: Resolved,
    pub kind: MentionKind,
    pub in_tests: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MentionKind {
    Import,
    ReExport,
    Glob,
    Inline,
}

/// Attributes whose arguments are no paths of this crate.
const WITHOUT_PATHS: [&str; 9] = ["allow", "cfg", "deny", "doc", "expect", "forbid", "path", "warn", "cfg_eval"];

/// Names before `::` in attributes that belong to tools.
const TOOLS: [&str; 5] = ["clippy", "diagnostic", "miri", "rustdoc", "rustfmt"];

/// Keys of attributes whose text is a path, as in `#[serde(with = "rfc3339")]`.
const KEYS_OF_PATHS: [&str; 13] = [
    "bound",
    "crate",
    "default",
    "deserialize_with",
    "from",
    "getter",
    "into",
    "remote",
    "schema_with",
    "serialize_with",
    "skip_serializing_if",
    "try_from",
    "with",
];

/// Words that never begin a path, so that a `::` behind them does.
const KEYWORDS: [&str; 26] = [
    "as", "async", "await", "break", "const", "dyn", "else", "extern", "fn", "for", "if", "impl", "in", "let", "loop",
    "match", "move", "mut", "pub", "ref", "return", "static", "unsafe", "use", "where", "while",
];

/// Types and traits that need no import and have functions of their own.
const PRELUDE: [&str; 50] = [
    "AsMut",
    "AsRef",
    "Box",
    "Clone",
    "Copy",
    "Default",
    "DoubleEndedIterator",
    "Drop",
    "Eq",
    "ExactSizeIterator",
    "Extend",
    "Fn",
    "FnMut",
    "FnOnce",
    "From",
    "FromIterator",
    "Into",
    "IntoIterator",
    "Iterator",
    "Option",
    "Ord",
    "PartialEq",
    "PartialOrd",
    "Result",
    "Send",
    "String",
    "Sync",
    "ToOwned",
    "ToString",
    "TryFrom",
    "TryInto",
    "Vec",
    "bool",
    "char",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "i128",
    "isize",
    "str",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize",
    "Future",
];

/// All paths of a tree.
pub fn mentions(tree: &mut Tree) -> Vec<Mention> {
    let mut mentions = Vec::new();
    for (module, file) in tree.bodies.clone() {
        let syntax = tree.files[file].syntax.clone();
        let mut generics = HashSet::new();
        Generics(&mut generics).visit_file(&syntax);
        let in_tests = usize::from(tree.modules[module].tests_only);
        let mut reader = Reader {
            tree,
            module,
            file,
            blocks: Vec::new(),
            generics,
            in_tests,
            line: None,
            in_macro: false,
            mentions: &mut mentions,
        };
        syntax.items.iter().for_each(|item| reader.visit_item(item));
        syntax.attrs.iter().for_each(|attribute| reader.visit_attribute(attribute));
    }
    mentions
}

/// The names of type parameters, which paths may begin with.
struct Generics<'a>(&'a mut HashSet<String>);

impl<'ast> Visit<'ast> for Generics<'_> {
    fn visit_type_param(&mut self, parameter: &'ast syn::TypeParam) {
        self.0.insert(parameter.ident.unraw().to_string());
        visit::visit_type_param(self, parameter);
    }
}

struct Reader<'a> {
    tree: &'a mut Tree,
    module: ModuleId,
    file: FileId,
    blocks: Vec<Block>,
    generics: HashSet<String>,
    /// Number of enclosing items that are for tests only.
    in_tests: usize,
    /// The line to report for text that is parsed separately and so has no lines.
    line: Option<usize>,
    in_macro: bool,
    mentions: &'a mut Vec<Mention>,
}

impl Reader<'_> {
    fn mention(&mut self, path: &[String], line: usize, kind: MentionKind) {
        let line = self.line.unwrap_or(line);
        let mut resolved = self.tree.resolve(self.module, &self.blocks, path);
        if kind == MentionKind::Inline {
            if resolved.unknown && path.len() == 1 {
                return;
            }
            // A single name is not a module or a crate, but a variable of that name.
            if path.len() == 1 {
                resolved.modules.clear();
                resolved.crates.clear();
            }
        } else {
            // An import is checked where it is written, even if it imports another import.
            resolved.imported = false;
        }
        if resolved.unknown && self.is_known(path, &resolved) {
            return;
        }
        let import = match resolved.imported {
            true => self.tree.resolve(self.module, &self.blocks, &path[..1]),
            false => Resolved::default(),
        };
        self.mentions.push(Mention {
            module: self.module,
            file: self.file,
            line,
            path: path.join("::"),
            resolved,
            import,
            kind,
            in_tests: self.in_tests > 0,
        });
    }

    /// Whether a name may exist although the tree does not show it.
    fn is_known(&self, path: &[String], resolved: &Resolved) -> bool {
        let first = path[0].as_str();
        let inside = resolved.through.last().copied();
        self.generics.contains(first)
            || PRELUDE.contains(&first)
            || TOOLS.contains(&first)
            || inside.is_none() && self.tree.may_hide_names(self.module, &self.blocks)
            || inside.is_some_and(|inside| self.tree.may_hide_names(inside, &[]))
    }

    /// Reads the paths in the arguments of a macro or an attribute.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.tokens(group.stream());
                    at += 1;
                }
                TokenTree::Literal(literal) => {
                    self.literal(literal, key_of(&tokens[..at]));
                    at += 1;
                }
                TokenTree::Ident(name) if KEYWORDS.iter().any(|keyword| name == keyword) => at += 1,
                _ if is_field(&tokens[..at]) => at += 1,
                TokenTree::Ident(_) => at = self.token_path(&tokens, at, Vec::new()),
                TokenTree::Punct(_) if is_separator(&tokens, at) && begins_path(&tokens[..at]) => {
                    at = self.token_path(&tokens, at + 2, vec![String::new()]);
                }
                TokenTree::Punct(_) => at += 1,
            }
        }
    }

    /// Reads the path that begins at a token, and returns where it ends.
    fn token_path(&mut self, tokens: &[TokenTree], start: usize, mut path: Vec<String>) -> usize {
        let mut at = start;
        let line = tokens.get(start).map_or(0, |token| token.span().start().line);
        let is_variable = at > 0 && is_punct(&tokens[at - 1], '$') && !is_ident(tokens.get(at), "crate");
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Ident(name) => {
                    path.push(name.unraw().to_string());
                    at += 1;
                }
                TokenTree::Group(group) if path.last().is_some_and(|name| !name.is_empty()) => {
                    // `use crate::{a, b::c}`
                    if !is_variable {
                        self.token_group(group.stream(), &path);
                    }
                    return at + 1;
                }
                _ => break,
            }
            if !is_separator(tokens, at) {
                break;
            }
            match tokens.get(at + 2) {
                Some(TokenTree::Ident(_)) => at += 2,
                Some(TokenTree::Group(group)) if group.delimiter() == proc_macro2::Delimiter::Brace => at += 2,
                _ => break,
            }
        }
        if path.iter().any(|name| !name.is_empty()) && !is_variable {
            let kind = match is_separator(tokens, at) && tokens.get(at + 2).is_some_and(|next| is_punct(next, '*')) {
                true => MentionKind::Glob,
                false => MentionKind::Inline,
            };
            self.mention(&path, line, kind);
        }
        at.max(start + 1)
    }

    /// The group of a `use` inside a macro.
    fn token_group(&mut self, group: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = group.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let of_self = is_ident(tokens.get(at), "self");
            match &tokens[at] {
                TokenTree::Ident(_) if of_self => {
                    self.mention(prefix, tokens[at].span().start().line, MentionKind::Import);
                    at += 1;
                }
                TokenTree::Ident(_) => at = self.token_path(&tokens, at, prefix.to_vec()),
                TokenTree::Punct(mark) if mark.as_char() == '*' => {
                    self.mention(prefix, mark.span().start().line, MentionKind::Glob);
                    at += 1;
                }
                _ => at += 1,
            }
            // Skip `as name`, up to the item after the comma.
            while tokens.get(at).is_some_and(|token| !is_punct(token, ',')) {
                at += 1;
            }
            at += 1;
        }
    }

    /// A text in an attribute that is a path.
    fn literal(&mut self, literal: &proc_macro2::Literal, key: Option<String>) {
        let of_paths = key.is_some_and(|key| KEYS_OF_PATHS.contains(&key.as_str()));
        let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) else { return };
        let looks_like_one = text.value().contains("::");
        // Most texts in the arguments of a macro are not paths: only those inside an attribute are read.
        let is_path = if self.in_macro { of_paths && looks_like_one } else { of_paths || looks_like_one };
        if !is_path {
            return;
        }
        if let Ok(parsed) = syn::parse_str::<syn::Type>(&text.value()) {
            let outer = self.line.replace(literal.span().start().line);
            self.visit_type(&parsed);
            self.line = outer;
        }
    }

    fn within(&mut self, block: Block, inside: impl FnOnce(&mut Self)) {
        self.blocks.push(block);
        inside(self);
        self.blocks.pop();
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let of_tests = usize::from(tests_only(attributes(item)));
        self.in_tests += of_tests;
        match item {
            Item::Verbatim(tokens) => self.tokens(tokens.clone()),
            item => visit::visit_item(self, item),
        }
        self.in_tests -= of_tests;
    }

    // `syn` passes on syntax that it has no type for as tokens.

    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        match expression {
            syn::Expr::Verbatim(tokens) => self.tokens(tokens.clone()),
            expression => visit::visit_expr(self, expression),
        }
    }

    fn visit_pat(&mut self, pattern: &'ast syn::Pat) {
        match pattern {
            syn::Pat::Verbatim(tokens) => self.tokens(tokens.clone()),
            pattern => visit::visit_pat(self, pattern),
        }
    }

    fn visit_type(&mut self, of: &'ast syn::Type) {
        match of {
            syn::Type::Verbatim(tokens) => self.tokens(tokens.clone()),
            of => visit::visit_type(self, of),
        }
    }

    fn visit_type_param_bound(&mut self, bound: &'ast syn::TypeParamBound) {
        match bound {
            syn::TypeParamBound::Verbatim(tokens) => self.tokens(tokens.clone()),
            bound => visit::visit_type_param_bound(self, bound),
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        match item {
            syn::ImplItem::Verbatim(tokens) => self.tokens(tokens.clone()),
            item => visit::visit_impl_item(self, item),
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        match item {
            syn::TraitItem::Verbatim(tokens) => self.tokens(tokens.clone()),
            item => visit::visit_trait_item(self, item),
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        item.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        let Some((_, items)) = &item.content else { return };
        let inside = self.tree.inline(self.file, item);
        let outer = std::mem::replace(&mut self.module, inside);
        let blocks = std::mem::take(&mut self.blocks);
        items.iter().for_each(|item| self.visit_item(item));
        self.module = outer;
        self.blocks = blocks;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        item.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        let prefix = item.leading_colon.iter().map(|_| String::new()).collect::<Vec<_>>();
        let kind = if is_reexport(&item.vis) { MentionKind::ReExport } else { MentionKind::Import };
        let mut found = Vec::new();
        leaves(&item.tree, &prefix, &mut |leaf| found.push(leaf));
        for leaf in found {
            let kind = match (&leaf.name, kind) {
                (None, MentionKind::Import) => MentionKind::Glob,
                _ => kind,
            };
            self.mention(&leaf.path, leaf.line, kind);
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        let name = item.ident.unraw().to_string();
        if name != "self" {
            self.mention(&[String::new(), name], item.ident.span().start().line, MentionKind::Import);
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let items = block.stmts.iter().filter_map(|statement| match statement {
            syn::Stmt::Item(item) => Some(item.clone()),
            _ => None,
        });
        let items: Vec<Item> = items.collect();
        let mut scope = Block::default();
        if !items.is_empty() {
            let (mut names, mut globs) = (Names::new(), Vec::new());
            self.tree.names(self.module, self.file, &items, &mut names, &mut globs);
            scope = Block { names, globs };
        }
        self.within(scope, |reader| visit::visit_block(reader, block));
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        self.qualified(path.qself.as_ref(), &path.path);
    }

    fn visit_type_path(&mut self, path: &'ast syn::TypePath) {
        self.qualified(path.qself.as_ref(), &path.path);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut names: Vec<String> = path.leading_colon.iter().map(|_| String::new()).collect();
        names.extend(path.segments.iter().map(|segment| segment.ident.unraw().to_string()));
        self.mention(&names, path.span().start().line, MentionKind::Inline);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        if let Some(name) = call.path.get_ident() {
            let scoped = self.tree.resolve(self.module, &self.blocks, &[name.unraw().to_string()]);
            if scoped.unknown {
                self.textual_macro(&name.unraw().to_string(), call.path.span().start().line);
            }
        }
        let outer = std::mem::replace(&mut self.in_macro, true);
        self.tokens(call.tokens.clone());
        self.in_macro = outer;
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let path = attribute.path();
        if WITHOUT_PATHS.iter().any(|name| path.is_ident(name)) {
            return;
        }
        self.visit_path(path);
        match &attribute.meta {
            Meta::Path(_) => {}
            Meta::List(list) => self.tokens(list.tokens.clone()),
            Meta::NameValue(meta) => self.visit_expr(&meta.value),
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in path)` names an ancestor and uses nothing of it.
    }
}

impl Reader<'_> {
    /// A path that may belong to a type: `<T as crate::room::Trait>::Item` names the trait.
    fn qualified(&mut self, of: Option<&syn::QSelf>, path: &syn::Path) {
        let Some(of) = of else { return self.visit_path(path) };
        self.visit_type(&of.ty);
        if of.position > 0 {
            let mut named = path.clone();
            named.segments = path.segments.iter().take(of.position).cloned().collect();
            self.visit_path(&named);
        }
        for segment in path.segments.iter().skip(of.position) {
            self.visit_path_arguments(&segment.arguments);
        }
    }

    /// A macro that is in scope because its definition is further up in the file.
    fn textual_macro(&mut self, name: &str, line: usize) {
        let Some(definitions) = self.tree.macros.get(name) else { return };
        let above = |definition: &&Definition| {
            definition.module == self.module || self.tree.is_below(self.module, definition.module)
        };
        let nearest = definitions.iter().filter(above).max_by_key(|of| self.tree.modules[of.module].path.len());
        let Some(definition) = nearest.or(definitions.first()).copied() else { return };
        let resolved =
            Resolved { through: vec![definition.module], definitions: vec![definition], ..Resolved::default() };
        let (module, file, in_tests) = (self.module, self.file, self.in_tests > 0);
        let path = format!("{name}!");
        let kind = MentionKind::Inline;
        let import = Resolved::default();
        self.mentions.push(Mention { module, file, line, path, resolved, import, kind, in_tests });
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_punct(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_ident(token: Option<&TokenTree>, name: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == name)
}

/// Whether there is a `::` at a token.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let first = tokens.get(at).is_some_and(|token| match token {
        TokenTree::Punct(punct) => punct.as_char() == ':' && punct.spacing() == Spacing::Joint,
        _ => false,
    });
    first && tokens.get(at + 1).is_some_and(|token| is_punct(token, ':'))
}

/// Whether a `::` after these tokens begins a path, instead of continuing one after a type.
fn begins_path(before: &[TokenTree]) -> bool {
    match before.last() {
        None => true,
        Some(TokenTree::Ident(name)) => KEYWORDS.iter().any(|keyword| name == keyword),
        Some(TokenTree::Punct(punct)) => punct.as_char() != '>' && punct.as_char() != ':',
        Some(TokenTree::Group(_) | TokenTree::Literal(_)) => false,
    }
}

/// Whether these tokens end in the dot of a field or a method, and not in the dots of a range.
fn is_field(before: &[TokenTree]) -> bool {
    match before {
        [.., previous, last] => is_punct(last, '.') && !is_punct(previous, '.'),
        _ => false,
    }
}

/// The key of `key = "text"`.
fn key_of(before: &[TokenTree]) -> Option<String> {
    match before {
        [.., TokenTree::Ident(key), equals] if is_punct(equals, '=') => Some(key.to_string()),
        _ => None,
    }
}
