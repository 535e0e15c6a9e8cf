-- Two hosts for the example, as the frontend would create them: "tanist" with the trapper item "ping", for the health check,
-- and "agt-1" with the active check "agent.ping" every second.
INSERT INTO hosts (hostid, host, name, status) VALUES (90001, 'tanist', 'tanist', 0), (90002, 'agt-1', 'agt-1', 0);
INSERT INTO items (itemid, hostid, type, name, key_, value_type, delay, params, description, posts, headers)
  VALUES (90001, 90001, 2, 'ping', 'ping', 3, '0', '', '', '', ''),
         (90002, 90002, 7, 'agent.ping', 'agent.ping', 3, '1s', '', '', '', '');
INSERT INTO item_rtdata (itemid) VALUES (90001), (90002);
