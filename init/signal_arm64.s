#include "textflag.h"

// signalHandler is a signal handler (rt_sigaction(2)): it writes the signal's number, one byte, to signalPipe. It may run on
// any thread at any time, so it touches nothing else.
TEXT signalHandler<>(SB), NOSPLIT|NOFRAME, $0
	MOVD $·signalBytes(SB), R1
	ADD  R0, R1
	MOVW ·signalPipe(SB), R0
	MOVD $1, R2
	MOVD $64, R8 // write
	SVC
	RET

TEXT signalReturn<>(SB), NOSPLIT|NOFRAME, $0
	MOVD $139, R8 // rt_sigreturn
	SVC
	BRK

GLOBL ·signalHandlerAddr(SB), RODATA, $8
DATA ·signalHandlerAddr(SB)/8, $signalHandler<>(SB)
GLOBL ·signalReturnAddr(SB), RODATA, $8
DATA ·signalReturnAddr(SB)/8, $signalReturn<>(SB)
