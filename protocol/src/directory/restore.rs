//! What a backup knew of tenants comes into the directory of a new cluster. The new cluster's own nodes are not touched.

use std::collections::BTreeMap;

use super::change::{MAX_RECORDS, MAX_SECRETS, MAX_TEXT};
use super::{Directory, Refused, Secret, Tenant, Token};
use crate::id::*;

impl Directory {
    /// That it is done once is held by the caller, who knows which restore there was.
    pub(super) fn restore(
        &mut self,
        tenants: &BTreeMap<TenantId, Tenant>,
        tokens: &BTreeMap<KeyFingerprint, Token>,
        secrets: &[Secret],
    ) -> Result<(), Refused> {
        if self.cluster == 0 || !matches!(self.secrets[..], [Secret { generation: 1, .. }]) {
            return Err(Refused::NotFresh);
        }
        let ascending = secrets.windows(2).all(|pair| pair[0].generation < pair[1].generation);
        if secrets.is_empty() || secrets.len() > MAX_SECRETS || !ascending {
            return Err(Refused::Secrets);
        }
        // Whoever restores may need the token that the new cluster was created with, so what it has stays.
        let (mut all, mut all_tokens) = (self.tenants.clone(), self.tokens.clone());
        all.extend(tenants.iter().map(|(tenant, value)| (*tenant, value.clone())));
        all_tokens.extend(tokens.iter().map(|(hash, value)| (*hash, value.clone())));
        let mut names = BTreeMap::new();
        for (tenant, value) in &all {
            if let Some(taken) = names.insert(&value.name, *tenant) {
                return Err(Refused::NameTaken(taken));
            }
        }
        if let Some(token) = all_tokens.values().find(|token| !all.contains_key(&token.tenant)) {
            return Err(Refused::UnknownTenant(token.tenant));
        }
        let mut texts = names.keys().copied().chain(all_tokens.values().map(|token| &token.name));
        let records = all.len() + all_tokens.len();
        if records > MAX_RECORDS || texts.any(|name| name.len() > MAX_TEXT) {
            return Err(Refused::Full(records));
        }
        (self.tenants, self.tokens, self.secrets) = (all, all_tokens, secrets.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Change, Node, Outcome, Roster};
    use crate::time::GroupTime;

    const NOW: GroupTime = GroupTime(1000);

    fn created() -> Directory {
        Directory {
            cluster: 7,
            groups: 3,
            nodes: BTreeMap::from([(NodeId(1), Node::default())]),
            secrets: vec![Secret { generation: 1, key: [1; 32] }],
            roster: Roster::founded([NodeId(1)].into_iter()),
            ..Directory::default()
        }
    }

    #[test]
    fn a_new_cluster_takes_a_backup_in_beside_what_it_has_and_keeps_its_nodes() {
        let tenant = |name: &str| Tenant { name: name.to_owned(), enrolment_key: None, open: false };
        let token = |tenant| Token { name: String::new(), tenant, rights: Default::default(), expires: None };
        let secret = |generation| Secret { generation, key: [9; 32] };
        let (own, theirs) = (KeyFingerprint([1; 32]), KeyFingerprint([2; 32]));
        let restore = |tenants: &[(u32, &str)], of, secrets: Vec<Secret>| Change::Restore {
            restore: RestoreId([1; 16]),
            tenants: tenants.iter().map(|(id, name)| (TenantId(*id), tenant(name))).collect(),
            tokens: BTreeMap::from([(theirs, token(TenantId(of)))]),
            secrets,
        };
        let mut new = created();
        let good = restore(&[(1, "a"), (2, "b")], 2, vec![secret(4), secret(5)]);
        assert_eq!(new.apply(&good, NOW), Err(Refused::Format(1)));
        new.roster.format = 2;
        new.tenants.insert(TenantId(1), tenant("first"));
        new.tokens.insert(own, token(TenantId(1)));
        let before = new.clone();
        for (bad, why) in [
            (restore(&[(2, "first")], 2, vec![secret(4)]), Refused::NameTaken(TenantId(1))),
            (restore(&[(2, "b")], 3, vec![secret(4)]), Refused::UnknownTenant(TenantId(3))),
            (restore(&[(2, "b")], 2, vec![]), Refused::Secrets),
            (restore(&[(2, "b")], 2, vec![secret(5), secret(4)]), Refused::Secrets),
            (restore(&[(2, &"x".repeat(MAX_TEXT + 1))], 2, vec![secret(4)]), Refused::Full(4)),
        ] {
            assert_eq!(new.apply(&bad, NOW), Err(why));
            assert_eq!(new, before);
        }
        assert_eq!(new.apply(&good, NOW), Ok(Outcome::Done));
        assert_eq!((new.cluster, &new.nodes, &new.roster), (before.cluster, &before.nodes, &before.roster));
        assert_eq!(new.tenants[&TenantId(1)].name, "a", "whose terminals come is known by the backup");
        assert!(new.tokens.contains_key(&own) && new.tokens.contains_key(&theirs));
        assert_eq!(new.secret(), Some(&secret(5)));
        assert_eq!(new.apply(&good, NOW), Err(Refused::NotFresh));
    }
}
