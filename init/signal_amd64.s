#include "textflag.h"

// signalHandler is a signal handler (rt_sigaction(2)): it writes the signal's number, one byte, to signalPipe. It may run on
// any thread at any time, so it touches nothing else.
TEXT signalHandler<>(SB), NOSPLIT|NOFRAME, $0
	LEAQ ·signalBytes(SB), SI
	ADDQ DI, SI
	MOVL ·signalPipe(SB), DI
	MOVL $1, DX
	MOVL $1, AX // write
	SYSCALL
	RET

TEXT signalReturn<>(SB), NOSPLIT|NOFRAME, $0
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	INT  $3

GLOBL ·signalHandlerAddr(SB), RODATA, $8
DATA ·signalHandlerAddr(SB)/8, $signalHandler<>(SB)
GLOBL ·signalReturnAddr(SB), RODATA, $8
DATA ·signalReturnAddr(SB)/8, $signalReturn<>(SB)
