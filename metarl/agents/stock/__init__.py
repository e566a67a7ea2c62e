"""Stock algorithms of SB3 and sb3-contrib as learners: started over at every task, watched, carried."""
