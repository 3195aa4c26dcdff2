//! Tokens from a file (`--token-auth-file`): lines of `token,user,uid,"group1,group2"`.

use super::remembered::{Fingerprint, fingerprint};
use crate::User;
use std::collections::HashMap;

/// One line of the file.
#[derive(Clone)]
pub struct StaticToken {
    pub token: String,
    pub user: User,
}

impl StaticToken {
    /// Reads a whole file. The error names the line.
    pub fn parse_file(content: &str) -> Result<Vec<StaticToken>, String> {
        let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        lines.map(|(i, line)| StaticToken::parse(line).ok_or_else(|| format!("line {}: expected token,user,uid[,\"groups\"]", i + 1))).collect()
    }

    fn parse(line: &str) -> Option<StaticToken> {
        let mut fields = fields(line).into_iter();
        let (token, name, uid) = (fields.next()?, fields.next()?, fields.next()?);
        let groups = fields.next().unwrap_or_default();
        let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty()).map(String::from).collect();
        (!token.is_empty() && !name.is_empty()).then(|| StaticToken { token, user: User { name, uid, groups, extra: Default::default() } })
    }
}

/// Comma-separated fields, of which any may be in double quotes.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for character in line.trim().chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().unwrap_or(&mut String::new()).push(character),
        }
    }
    fields.into_iter().map(|field| field.trim().to_string()).collect()
}

/// All static tokens by fingerprint, so that looking one up tells nothing through its duration.
pub(super) struct StaticTokens {
    users: HashMap<Fingerprint, User>,
}

impl StaticTokens {
    pub(super) fn new(tokens: &[StaticToken]) -> StaticTokens {
        StaticTokens { users: tokens.iter().map(|token| (fingerprint(token.token.as_bytes()), token.user.clone())).collect() }
    }
    pub(super) fn authenticate(&self, token: &str) -> Option<User> {
        if self.users.is_empty() { None } else { self.users.get(&fingerprint(token.as_bytes())).cloned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_kubernetes_form() {
        let tokens = StaticToken::parse_file("# who\nabc,jane,7,\"devs, ops\"\ndef,bob,8\n").unwrap();
        let known = StaticTokens::new(&tokens);
        assert_eq!(known.authenticate("abc").unwrap().groups, ["devs", "ops"]);
        assert_eq!(known.authenticate("def").unwrap().name, "bob");
        assert!(known.authenticate("ghi").is_none());
        assert!(StaticToken::parse_file("abc,jane\n").err().unwrap().contains("line 1"));
    }
}
