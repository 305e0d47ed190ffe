#include "textflag.h"

// childHandler is a signal handler (rt_sigaction(2)): it makes the eventfd in childWake readable and returns. It may run
// on any thread, at any time, so it touches nothing else.
TEXT childHandler<>(SB), NOSPLIT|NOFRAME, $0
	MOVW ·childWake(SB), R0
	MOVD $·childOne(SB), R1
	MOVD $8, R2
	MOVD $64, R8 // write
	SVC
	RET

TEXT childReturn<>(SB), NOSPLIT|NOFRAME, $0
	MOVD $139, R8 // rt_sigreturn
	SVC
	BRK

GLOBL ·childHandlerAddr(SB), RODATA, $8
DATA ·childHandlerAddr(SB)/8, $childHandler<>(SB)
GLOBL ·childReturnAddr(SB), RODATA, $8
DATA ·childReturnAddr(SB)/8, $childReturn<>(SB)
