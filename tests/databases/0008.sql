BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0008');
CREATE TABLE ceilings (
	id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	payload TEXT NOT NULL, 
	measured_at DATETIME NOT NULL, 
	CONSTRAINT pk_ceilings PRIMARY KEY (id), 
	CONSTRAINT fk_ceilings_environment_id_environments FOREIGN KEY(environment_id) REFERENCES environments (id), 
	CONSTRAINT uq_ceilings_environment_id UNIQUE (environment_id)
);
INSERT INTO "ceilings" VALUES(1,1,'{"copy_bytes_per_s":4000000000000.0}','2026-11-27 18:54:35.946384');
CREATE TABLE comparisons (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	candidate_id INTEGER NOT NULL, 
	baseline_id INTEGER NOT NULL, 
	ratio DOUBLE NOT NULL, 
	low DOUBLE NOT NULL, 
	high DOUBLE NOT NULL, 
	block_ratios TEXT NOT NULL, 
	blocks INTEGER NOT NULL, 
	verdict TEXT NOT NULL, 
	made_at DATETIME NOT NULL, planned INTEGER, 
	CONSTRAINT pk_comparisons PRIMARY KEY (id), 
	CONSTRAINT fk_comparisons_baseline_id_configurations FOREIGN KEY(baseline_id) REFERENCES configurations (id), 
	CONSTRAINT fk_comparisons_candidate_id_configurations FOREIGN KEY(candidate_id) REFERENCES configurations (id), 
	CONSTRAINT fk_comparisons_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id), 
	CONSTRAINT uq_comparisons_study_id_candidate_id_baseline_id UNIQUE (study_id, candidate_id, baseline_id)
);
INSERT INTO "comparisons" VALUES(1,1,2,1,1.50328170393248483627e+00,1.43741697657807199206e+00,1.57216445763566015081e+00,'[1.5,1.52,1.49]',3,'faster','2026-11-27 18:54:35.958836',9);
CREATE TABLE configurations (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	CONSTRAINT pk_configurations PRIMARY KEY (id), 
	CONSTRAINT uq_configurations_key UNIQUE ("key")
);
INSERT INTO "configurations" VALUES(1,'17cd41f4c741f885','{"attention":"sdpa","precision":"float32"}');
INSERT INTO "configurations" VALUES(2,'7cca83c9fe28b648','{"attention":"flash_attention_2","precision":"bfloat16"}');
INSERT INTO "configurations" VALUES(3,'830908f02527053b','{"attention":"sdpa","precision":"bfloat16"}');
CREATE TABLE environments (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	first_seen DATETIME NOT NULL, 
	CONSTRAINT pk_environments PRIMARY KEY (id), 
	CONSTRAINT uq_environments_key UNIQUE ("key")
);
INSERT INTO "environments" VALUES(1,'26a338879c4247e0','{"compute_capability":[9,0],"cuda":null,"device":"cuda","device_name":"NVIDIA H200","driver":null,"memory_bytes":150000000000,"mig_profile":null,"packages":{"torch":"2.9.0"},"power_limit_w":700,"threads":0}','2026-11-27 18:54:35.940606');
CREATE TABLE knobs (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	implied TEXT NOT NULL, 
	place INTEGER NOT NULL, 
	CONSTRAINT pk_knobs PRIMARY KEY (id), 
	CONSTRAINT uq_knobs_name UNIQUE (name)
);
INSERT INTO "knobs" VALUES(1,'attention','',10);
INSERT INTO "knobs" VALUES(2,'precision','',20);
INSERT INTO "knobs" VALUES(3,'quantization','none',30);
INSERT INTO "knobs" VALUES(4,'packing','padded',40);
INSERT INTO "knobs" VALUES(5,'batch','',50);
CREATE TABLE measurements (
	id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	metric TEXT NOT NULL, 
	unit TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	samples TEXT NOT NULL, 
	n INTEGER NOT NULL, 
	median DOUBLE NOT NULL, 
	low DOUBLE NOT NULL, 
	high DOUBLE NOT NULL, 
	statistic TEXT NOT NULL, 
	device_state TEXT NOT NULL, 
	CONSTRAINT pk_measurements PRIMARY KEY (id), 
	CONSTRAINT fk_measurements_trial_id_trials FOREIGN KEY(trial_id) REFERENCES trials (id), 
	CONSTRAINT uq_measurements_trial_id_metric UNIQUE (trial_id, metric)
);
INSERT INTO "measurements" VALUES(1,1,'tokens_per_s','tokens/s','search','[1000.0,1010.5,990.25]',3,1000.0,990.25,1010.5,'median/order-statistics/1','{"clock":"not observable"}');
INSERT INTO "measurements" VALUES(2,1,'peak_bytes','bytes','search','[8589934592.0]',1,8589934592.0,8589934592.0,8589934592.0,'median/order-statistics/1','{}');
INSERT INTO "measurements" VALUES(3,2,'tokens_per_s','tokens/s','search','[1001.0,1010.5,990.25]',3,1001.0,990.25,1010.5,'median/order-statistics/1','{"clock":"not observable"}');
INSERT INTO "measurements" VALUES(4,2,'peak_bytes','bytes','search','[8589934592.0]',1,8589934592.0,8589934592.0,8589934592.0,'median/order-statistics/1','{}');
CREATE TABLE models (
	id INTEGER NOT NULL, 
	architecture_key TEXT NOT NULL, 
	weights_digest TEXT NOT NULL, 
	name TEXT NOT NULL, 
	facts TEXT, 
	CONSTRAINT pk_models PRIMARY KEY (id), 
	CONSTRAINT uq_models_architecture_key_weights_digest UNIQUE (architecture_key, weights_digest)
);
INSERT INTO "models" VALUES(1,'fbbbf43a0668d9b0','d1','org/model','{"accepts":["attention_mask","position_ids","logits_to_keep","cu_seq_lens_q"],"active_linear_parameters":0,"after_pooling":[],"alibi":false,"architecture":"LlamaForCausalLM","attention_width":0,"checkpoint_dtype":"bfloat16","default_attention":"sdpa","experts":0,"fused_encoder":false,"head":"","head_dim":16,"heads":4,"hidden_size":64,"is_causal":true,"kv_heads":2,"layer_types":["full","sliding"],"layers":2,"linear_parameters":900,"logits_class":"AutoModelForCausalLM","max_positions":2048,"max_row":null,"model_type":"llama","packed_row":"","pads":true,"parameter_bytes":2000,"parameters":1000,"pooling":"last","position_offset":0,"prequantized":null,"recurrent":false,"sliding_window":128,"softcap":false,"supports_flash":true,"supports_flex":false,"supports_sdpa":true,"switches_attention":true,"takes_positions":true,"vocabulary":512,"windows":[]}');
CREATE TABLE recommendations (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	configuration_id INTEGER, 
	verdict TEXT NOT NULL, 
	ratio DOUBLE, 
	low DOUBLE, 
	high DOUBLE, 
	blocks INTEGER NOT NULL, 
	tried INTEGER NOT NULL, 
	admissible INTEGER, 
	why TEXT NOT NULL, 
	made_at DATETIME NOT NULL, 
	method TEXT NOT NULL, 
	CONSTRAINT pk_recommendations PRIMARY KEY (id), 
	CONSTRAINT fk_recommendations_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id), 
	CONSTRAINT fk_recommendations_configuration_id_configurations FOREIGN KEY(configuration_id) REFERENCES configurations (id), 
	CONSTRAINT uq_recommendations_study_id UNIQUE (study_id)
);
INSERT INTO "recommendations" VALUES(1,1,2,'faster',1.5,1.4,1.6,3,2,12,'["a note"]','2026-11-27 18:54:35.963136','of another time');
CREATE TABLE refusals (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	subject TEXT NOT NULL, 
	about TEXT NOT NULL, 
	rule TEXT NOT NULL, 
	verdict TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	remedy TEXT NOT NULL, 
	CONSTRAINT pk_refusals PRIMARY KEY (id), 
	CONSTRAINT fk_refusals_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id), 
	CONSTRAINT uq_refusals_study_id_subject_about_rule UNIQUE (study_id, subject, about, rule)
);
INSERT INTO "refusals" VALUES(1,1,'attention=flash_attention_2','packing=padded','A4','WRONG','masks are ignored','use sdpa');
CREATE TABLE slots (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	host TEXT NOT NULL, 
	environment_id INTEGER NOT NULL, 
	device_class TEXT NOT NULL, 
	owner TEXT, 
	state TEXT NOT NULL, 
	why TEXT NOT NULL, 
	job TEXT, 
	busy_s DOUBLE NOT NULL, 
	lease DATETIME, 
	advisor_version TEXT NOT NULL, 
	CONSTRAINT pk_slots PRIMARY KEY (id), 
	CONSTRAINT fk_slots_environment_id_environments FOREIGN KEY(environment_id) REFERENCES environments (id), 
	CONSTRAINT uq_slots_name UNIQUE (name)
);
CREATE TABLE studies (
	id INTEGER NOT NULL, 
	workload_id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	model_id INTEGER NOT NULL, 
	objective TEXT NOT NULL, 
	objective_key TEXT NOT NULL, 
	budget TEXT NOT NULL, 
	seed INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, admissible INTEGER, facts TEXT, 
	CONSTRAINT pk_studies PRIMARY KEY (id), 
	CONSTRAINT fk_studies_environment_id_environments FOREIGN KEY(environment_id) REFERENCES environments (id), 
	CONSTRAINT fk_studies_model_id_models FOREIGN KEY(model_id) REFERENCES models (id), 
	CONSTRAINT fk_studies_workload_id_workloads FOREIGN KEY(workload_id) REFERENCES workloads (id), 
	CONSTRAINT uq_studies_workload_id_environment_id_model_id_objective_key UNIQUE (workload_id, environment_id, model_id, objective_key)
);
INSERT INTO "studies" VALUES(1,1,1,1,'{"allow_unjudged":false,"ignored_rules":["A4","P1"],"max_memory_bytes":100000000000,"metric":"tokens_per_s","quality":"8bit"}','ade2b09e9a4486c7','{"blocks":9,"exhaustive":false,"payback_s":null,"seconds":60.0,"trials":40}',7,'done','2026-11-27 18:54:35.942878','2026-11-27 18:54:35.962623',12,NULL);
CREATE TABLE trials (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	phase TEXT NOT NULL, 
	block INTEGER, 
	requested_id INTEGER NOT NULL, 
	effective_id INTEGER, 
	outcome TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	owner TEXT, 
	lease DATETIME, 
	attempts INTEGER NOT NULL, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	load_s DOUBLE, 
	first_call_s DOUBLE, 
	measure_s DOUBLE, 
	wall_s DOUBLE, 
	peak_bytes BIGINT, 
	weight_bytes BIGINT, 
	quality TEXT, 
	reading TEXT, 
	reused_from INTEGER, 
	advisor_version TEXT NOT NULL, device_uuid TEXT, 
	CONSTRAINT pk_trials PRIMARY KEY (id), 
	CONSTRAINT fk_trials_effective_id_configurations FOREIGN KEY(effective_id) REFERENCES configurations (id), 
	CONSTRAINT fk_trials_requested_id_configurations FOREIGN KEY(requested_id) REFERENCES configurations (id), 
	CONSTRAINT fk_trials_reused_from_trials FOREIGN KEY(reused_from) REFERENCES trials (id), 
	CONSTRAINT fk_trials_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id), 
	CONSTRAINT uq_trials_study_id_number UNIQUE (study_id, number)
);
INSERT INTO "trials" VALUES(1,1,0,'search',NULL,1,1,'ok','ran as asked','host:1:1','2026-11-27 18:55:05.951371',1,'2026-11-27 18:54:35.948084','2026-11-27 18:54:35.952111',1.5,0.25,3.0,5.125,1099511627776,8589934592,'{"cosine":null,"drawn":false,"gate":"","gate_s":0.0,"kl":0.002,"layout":null,"layout_pads":null,"layout_words":"","maximum":0.5,"neighbours":0.5,"own":null,"pads":null,"perplexity_ratio":1.01,"positions":380,"probe_void":"","probed":"","quantised":"","reference":"fp32, eager","repeat":null,"rms":0.01,"top1":0.99,"top10":null}','{"attention":{"":"sdpa"},"operators":["aten::mm"]}',NULL,'0.1.0',NULL);
INSERT INTO "trials" VALUES(2,1,1,'search',NULL,2,2,'ok','ran as asked','host:1:1','2026-11-27 18:55:05.956072',1,'2026-11-27 18:54:35.954861','2026-11-27 18:54:35.956362',1.5,0.25,3.0,5.125,1099511627776,8589934592,'{"cosine":null,"drawn":false,"gate":"","gate_s":0.0,"kl":0.002,"layout":null,"layout_pads":null,"layout_words":"","maximum":0.5,"neighbours":0.5,"own":null,"pads":null,"perplexity_ratio":1.01,"positions":380,"probe_void":"","probed":"","quantised":"","reference":"fp32, eager","repeat":null,"rms":0.01,"top1":0.99,"top10":null}','{"attention":{"":"sdpa"},"operators":["aten::mm"]}',NULL,'0.1.0',NULL);
INSERT INTO "trials" VALUES(3,1,2,'search',NULL,3,NULL,'running','','host:1:1','2026-11-27 18:55:05.958373',1,'2026-11-27 18:54:35.957396',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'0.1.0',NULL);
CREATE TABLE workloads (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	architecture_key TEXT NOT NULL, 
	payload TEXT NOT NULL, words TEXT, padding DOUBLE, 
	CONSTRAINT pk_workloads PRIMARY KEY (id), 
	CONSTRAINT uq_workloads_key UNIQUE ("key")
);
INSERT INTO "workloads" VALUES(1,'5d37ba302da2df2d','forward','fbbbf43a0668d9b0','{"batch":2,"kind":"forward","lengths":[128,64,96,32],"output":"last-logits"}','forward, 2 × 128 tokens, padding 0.29, last-logits, 2 batches',2.85714285714285698425e-01);
CREATE INDEX ix_workloads_architecture_key ON workloads (architecture_key);
CREATE INDEX ix_studies_environment_id ON studies (environment_id);
CREATE INDEX ix_trials_study_id_requested_id_finished_at ON trials (study_id, requested_id, finished_at);
CREATE INDEX ix_trials_study_id_finished_at ON trials (study_id, finished_at);
CREATE VIEW v_trials AS SELECT s.id AS study, t.number AS number, t.phase AS phase, t.block AS block, m.name AS model,
  w.key AS workload_key, w.kind AS kind,
  CAST(json_extract(w.payload, '$.batch') AS INTEGER) AS batch,
  json_extract(w.payload, '$.output') AS output,
  (SELECT MAX(value) FROM json_each(w.payload, '$.lengths')) AS longest,
  json_extract(e.payload, '$.device_name') AS device,
  (SELECT group_concat(value, ' · ') FROM (SELECT j.value AS value
    FROM json_each(r.payload) j LEFT JOIN knobs o ON o.name = j.key ORDER BY COALESCE(o.place, 1000000), j.key)) AS requested,
  (SELECT group_concat(value, ' · ') FROM (SELECT j.value AS value
    FROM json_each(f.payload) j LEFT JOIN knobs o ON o.name = j.key ORDER BY COALESCE(o.place, 1000000), j.key)) AS effective,
  json_extract(COALESCE(f.payload, r.payload), '$.attention') AS attention,
  json_extract(COALESCE(f.payload, r.payload), '$.precision') AS precision,
  COALESCE(json_extract(COALESCE(f.payload, r.payload), '$.quantization'), 'none') AS quantization,
  COALESCE(json_extract(COALESCE(f.payload, r.payload), '$.packing'), 'padded') AS packing,
  t.outcome AS outcome, t.reason AS reason,
  x.median AS tokens_per_s, x.low AS tokens_per_s_low, x.high AS tokens_per_s_high,
  t.peak_bytes AS peak_bytes, t.load_s AS load_s, t.first_call_s AS first_call_s,
  CAST(json_extract(t.quality, '$.kl') AS DOUBLE PRECISION) AS kl,
  CAST(json_extract(t.quality, '$.top1') AS DOUBLE PRECISION) AS top1,
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused,
  COALESCE((SELECT CAST(value AS INTEGER)
    FROM json_each(COALESCE(f.payload, r.payload), '$.batch') WHERE value GLOB '[0-9]*' AND value NOT GLOB '*[^0-9]*'), CAST(json_extract(w.payload, '$.batch') AS INTEGER)) AS batch_size,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'slowest_batch_s') AS slowest_batch_s,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'joules_per_token') AS joules_per_token,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'sequences_per_s') AS sequences_per_s,
  CAST(json_extract(t.quality, '$.cosine') AS DOUBLE PRECISION) AS cosine,
  CAST(json_extract(t.quality, '$.top10') AS DOUBLE PRECISION) AS top10,
  w.words AS workload, w.padding AS padding, COALESCE(json_extract(s.objective, '$.metric'), 'tokens_per_s') AS objective, json_extract(s.objective, '$.quality') AS quality, CAST(json_extract(e.payload, '$.threads') AS INTEGER) AS threads, e.key AS environment_key, json_extract(e.payload, '$.driver') AS driver, json_extract(e.payload, '$.packages.torch') AS torch, json_extract(e.payload, '$.packages.transformers') AS transformers,
  t.finished_at AS measured_at
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN trials t ON t.study_id = s.id
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s';
CREATE VIEW v_recommendations AS SELECT s.id AS study, m.name AS model,
  json_extract(e.payload, '$.device_name') AS device, w.key AS workload_key,
  (SELECT group_concat(value, ' · ') FROM (SELECT j.value AS value
    FROM json_each(k.payload) j LEFT JOIN knobs o ON o.name = j.key ORDER BY COALESCE(o.place, 1000000), j.key)) AS configuration, k.key AS configuration_key,
  CASE WHEN a.blocks > 0 THEN a.ratio END AS ratio, CASE WHEN a.blocks > 1 THEN a.low END AS low,
  CASE WHEN a.blocks > 1 THEN a.high END AS high, a.verdict AS verdict, a.blocks AS blocks,
  a.tried AS tried, a.admissible AS admissible,
  CASE WHEN a.method <> 'rules/1 gate/2 median/order-statistics/1'
    OR EXISTS (SELECT 1 FROM trials t WHERE t.study_id = s.id AND t.finished_at > a.made_at)
    OR EXISTS (SELECT 1 FROM comparisons c WHERE c.study_id = s.id AND c.made_at > a.made_at)
  THEN 1 ELSE 0 END AS stale, a.made_at AS made_at,
  (SELECT MAX(value) FROM json_each(w.payload, '$.lengths')) AS longest,
  CAST(json_extract(w.payload, '$.batch') AS INTEGER) AS batch,
  json_extract(w.payload, '$.output') AS output,
  w.words AS workload, w.padding AS padding, COALESCE(json_extract(s.objective, '$.metric'), 'tokens_per_s') AS objective, json_extract(s.objective, '$.quality') AS quality, CAST(json_extract(e.payload, '$.threads') AS INTEGER) AS threads, e.key AS environment_key, json_extract(e.payload, '$.driver') AS driver, json_extract(e.payload, '$.packages.torch') AS torch, json_extract(e.payload, '$.packages.transformers') AS transformers,
  COALESCE(s.finished_at, s.started_at) AS measured_at
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN recommendations a ON a.study_id = s.id
  LEFT JOIN configurations k ON k.id = a.configuration_id;
CREATE VIEW v_refusals AS SELECT s.id AS study, m.name AS model,
  json_extract(e.payload, '$.device_name') AS device,
  x.subject AS subject, x.about AS about, x.rule AS rule, x.verdict AS verdict, x.reason AS reason, x.remedy AS remedy
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN refusals x ON x.study_id = s.id;
CREATE VIEW v_trial_choices AS SELECT t.study_id AS study, t.number AS number, j.key AS knob, j.value AS choice, 1 AS requested
FROM trials t JOIN configurations c ON c.id = t.requested_id CROSS JOIN json_each(c.payload) j
UNION ALL
SELECT t.study_id AS study, t.number AS number, k.name AS knob, k.implied AS choice, 1 AS requested
FROM trials t JOIN configurations c ON c.id = t.requested_id JOIN knobs k ON k.implied <> '' AND json_extract(c.payload, '$."' || k.name || '"') IS NULL
UNION ALL
SELECT t.study_id AS study, t.number AS number, j.key AS knob, j.value AS choice, 0 AS requested
FROM trials t JOIN configurations c ON c.id = t.effective_id CROSS JOIN json_each(c.payload) j
UNION ALL
SELECT t.study_id AS study, t.number AS number, k.name AS knob, k.implied AS choice, 0 AS requested
FROM trials t JOIN configurations c ON c.id = t.effective_id JOIN knobs k ON k.implied <> '' AND json_extract(c.payload, '$."' || k.name || '"') IS NULL;
CREATE VIEW v_measurements AS SELECT t.study_id AS study, t.number AS number, t.phase AS phase, t.block AS block, t.outcome AS outcome,
  x.metric AS metric, x.unit AS unit, x.n AS n, x.median AS median, x.low AS low, x.high AS high
FROM trials t
  JOIN measurements x ON x.trial_id = t.id;
COMMIT;
