BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE hpo_checkpoints (
	study VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	state BLOB NOT NULL, 
	PRIMARY KEY (study, number)
);
INSERT INTO "hpo_checkpoints" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',2,X'61667465722065706F63682033');
INSERT INTO "hpo_checkpoints" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',3,X'61667465722065706F63682032');
CREATE TABLE hpo_leases (
	study VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	failures INTEGER NOT NULL, 
	died_after INTEGER, 
	died_step INTEGER, 
	deaths INTEGER NOT NULL, 
	paused BOOLEAN NOT NULL, 
	promotions INTEGER NOT NULL, 
	owner VARCHAR(255), 
	expires DOUBLE NOT NULL, 
	epoch INTEGER NOT NULL, 
	seconds DOUBLE NOT NULL, 
	epochs_lost INTEGER NOT NULL, 
	error TEXT, 
	finished BOOLEAN NOT NULL, 
	value DOUBLE, 
	weights BLOB, 
	PRIMARY KEY (study, number)
);
INSERT INTO "hpo_leases" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',0,1,1,0,NULL,NULL,0,0,0,NULL,1.79574388912800168988e+09,0,0.0,0,NULL,1,0.75,X'77656967687473');
INSERT INTO "hpo_leases" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',1,2,1,0,NULL,NULL,0,0,0,NULL,1.79574388913198471073e+09,0,0.0,0,NULL,1,NULL,NULL);
INSERT INTO "hpo_leases" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',2,3,2,2,4,7,1,0,0,NULL,1.79574388913701391218e+09,3,1.5,5,'killed by SIGSEGV',0,NULL,NULL);
INSERT INTO "hpo_leases" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',3,4,1,0,NULL,NULL,0,1,0,NULL,1.79574388913898515696e+09,2,1.0,0,NULL,0,NULL,NULL);
INSERT INTO "hpo_leases" VALUES('fc59f8d9e5194ddcaa1f8fa5be64f038',4,5,1,0,NULL,NULL,0,0,0,NULL,1.79574388913999104504e+09,0,0.0,0,NULL,1,NULL,NULL);
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'s');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["validation accuracy"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'settings','{"study.name": "s", "study.seed": 0, "study.sampler": "tpe", "study.pruner": "asha", "data.dataset": "digits", "data.label": null, "data.split": {"train": 0.7, "validation": 0.15, "test": 0.15}, "data.scale": null, "data.pca": 0.0, "train.epochs": 5, "space.learning_rate": {"low": 0.0001, "high": 0.1, "log": true}, "space.regularization": {"low": 1e-07, "high": 0.01, "log": true}, "space.hidden_size": {"low": 32, "high": 400, "log": false}}');
INSERT INTO "study_user_attributes" VALUES(2,1,'data','"0123456789abcdef"');
INSERT INTO "study_user_attributes" VALUES(3,1,'leases','"fc59f8d9e5194ddcaa1f8fa5be64f038"');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,1,0.5,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,1,5,0.75,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,2,2,0.25,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,3,1,0.1,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,3,2,0.2,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(6,4,2,0.5,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'learning_rate',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(2,1,'regularization',0.0001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-07, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(3,1,'hidden_size',40.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 32, "high": 400}}');
INSERT INTO "trial_params" VALUES(4,2,'learning_rate',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(5,2,'regularization',0.0001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-07, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(6,2,'hidden_size',41.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 32, "high": 400}}');
INSERT INTO "trial_params" VALUES(7,3,'learning_rate',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(8,3,'regularization',0.0001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-07, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(9,3,'hidden_size',42.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 32, "high": 400}}');
INSERT INTO "trial_params" VALUES(10,4,'learning_rate',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(11,4,'regularization',0.0001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-07, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(12,4,'hidden_size',43.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 32, "high": 400}}');
INSERT INTO "trial_params" VALUES(13,5,'learning_rate',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(14,5,'regularization',0.0001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-07, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(15,5,'hidden_size',44.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 32, "high": 400}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,2,'reason','"pruned at epoch 2"');
INSERT INTO "trial_user_attributes" VALUES(2,5,'reason','"crashed 3 times: x"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.75,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,0.25,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 01:44:39.125606','2026-11-27 01:44:39.131322');
INSERT INTO "trials" VALUES(2,1,1,'PRUNED','2026-11-27 01:44:39.132085','2026-11-27 01:44:39.132751');
INSERT INTO "trials" VALUES(3,2,1,'RUNNING','2026-11-27 01:44:39.133119',NULL);
INSERT INTO "trials" VALUES(4,3,1,'RUNNING','2026-11-27 01:44:39.138465',NULL);
INSERT INTO "trials" VALUES(5,4,1,'FAIL','2026-11-27 01:44:39.139801','2026-11-27 01:44:39.140369');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
CREATE INDEX hpo_leases_finished ON hpo_leases (study, finished, value);
COMMIT;
