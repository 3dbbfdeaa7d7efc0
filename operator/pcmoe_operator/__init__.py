"""From a `PCMoEConsortium` manifest to running participants. Never imports torch."""
