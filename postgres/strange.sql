    SELECT format('%s %s.%I belongs to %I', o.kind, 'tanist', o.name, pg_get_userbyid(o.owner))
      FROM pg_namespace s JOIN (
            SELECT 'relation' AS kind, relname AS name, relowner AS owner, relnamespace AS namespace FROM pg_class
            UNION ALL SELECT 'type', typname, typowner, typnamespace FROM pg_type
            UNION ALL SELECT 'operator', oprname, oprowner, oprnamespace FROM pg_operator
            UNION ALL SELECT 'operator class', opcname, opcowner, opcnamespace FROM pg_opclass
            UNION ALL SELECT 'operator family', opfname, opfowner, opfnamespace FROM pg_opfamily
            UNION ALL SELECT 'collation', collname, collowner, collnamespace FROM pg_collation
            UNION ALL SELECT 'conversion', conname, conowner, connamespace FROM pg_conversion
            UNION ALL SELECT 'text search dictionary', dictname, dictowner, dictnamespace FROM pg_ts_dict
            UNION ALL SELECT 'text search configuration', cfgname, cfgowner, cfgnamespace FROM pg_ts_config
            UNION ALL SELECT 'statistics', stxname, stxowner, stxnamespace FROM pg_statistic_ext
            UNION ALL SELECT 'schema', nspname, nspowner, oid FROM pg_namespace
            UNION ALL SELECT 'function', proname, proowner, pronamespace FROM pg_proc
                       WHERE NOT (proname IN ('end_starting', 'verifier_is') AND proowner IN (SELECT oid FROM pg_roles WHERE rolsuper))
           ) o ON o.namespace = s.oid
     WHERE s.nspname = 'tanist' AND pg_get_userbyid(o.owner) <> 'tanist_owner'
    UNION ALL
    SELECT format('%s tanist.%I does not belong to the fence', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'r' THEN 'table' ELSE 'relation' END, c.relname)
      FROM pg_class c WHERE c.relnamespace = to_regnamespace('tanist') AND c.relkind NOT IN ('i', 't', 'c')
       AND NOT (c.relkind = 'r' AND c.relname IN ('fence', 'controller', 'bound', 'history'))
    UNION ALL
    SELECT format('the trigger %I on tanist.%I does not belong to the fence', t.tgname, c.relname)
      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = to_regnamespace('tanist') AND NOT t.tgisinternal
    UNION ALL
    SELECT format('the rule %I on tanist.%I does not belong to the fence', w.rulename, c.relname)
      FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class WHERE c.relnamespace = to_regnamespace('tanist') AND c.relkind = 'r'
    UNION ALL
    SELECT format('the policy %I on tanist.%I does not belong to the fence', p.polname, c.relname)
      FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE c.relnamespace = to_regnamespace('tanist')
    UNION ALL
    SELECT format('the table %s inherits from tanist.%I', i.inhrelid::regclass, c.relname)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE c.relnamespace = to_regnamespace('tanist')
    UNION ALL
    SELECT format('%s may create objects in the schema tanist', CASE a.grantee WHEN 0 THEN 'everybody' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
      FROM pg_namespace s CROSS JOIN LATERAL aclexplode(s.nspacl) a
     WHERE s.nspname = 'tanist' AND a.privilege_type = 'CREATE' AND a.grantee <> s.nspowner
    UNION ALL
    SELECT format('%s has %s on tanist.%I', CASE a.grantee WHEN 0 THEN 'everybody' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, a.privilege_type, c.relname)
      FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
     WHERE c.relnamespace = to_regnamespace('tanist') AND a.grantee <> c.relowner AND a.privilege_type <> 'SELECT'
