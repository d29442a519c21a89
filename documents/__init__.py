"""What writes the numbers of results/ into README, cards and figures."""
